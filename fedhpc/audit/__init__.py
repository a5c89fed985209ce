"""The privacy audit: attacks on what was really sent, and mutilated privacy that those attacks must notice.

It runs inside one hospital, on its own shard, and sends nothing. Which attack answers which question:

- **Gradient inversion** (`inversion`): can a picture be read out of an update? In the worst case (one image, one step,
  every entry sent) on a linear layer, where the answer is exact, on a convolutional network without kinks, and on the
  run's own network; and in a real round of the run. Each without privacy, with the clip alone, and with DP.
- **Canaries over a whole run** (`membership`): one-run audits (Steinke, Nasr & Jagielski 2023) of as many steps as the
  run takes, at its own noise, sample rate and clip norm, through `Hospital` and its ledger. Canaries are units whose
  clipped gradients are orthogonal, the worst that the guarantee allows for (the "Dirac canaries" of Nasr et al. 2023,
  "Tight auditing of differentially private machine learning"); the adversary sees every update and parameter, and
  chooses the network.
- **Canaries in the real training** (`membership`): one round of the run's own network on the site's own patients.
- **Laws** (`laws`): what must be true of every step, measured and judged with confidence intervals: noise and
  contribution by step, tensor and site, clip norm, unit, denominator, Poisson sampling, entropy of the noise, ledgers,
  another library's accountant, and with `privacy.trust: sites` each site's share of the noise.
- **One step in many trials** (`controls`): lower bounds on epsilon and their controls (no noise, no clip, one seed at
  all sites, every unit at every step), at a plan of the audit's own where a step costs milliseconds.

Every trial goes through `Hospital.train` or `site_round` as they are. A control alters what is handed to
them (a plan, a clip norm, a seed), never the code, and no code outside of this package knows of it.
"""
