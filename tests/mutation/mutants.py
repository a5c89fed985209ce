"""The faults that are made on purpose in a copy of the package, and what must notice each.

A mutant replaces text of one file, which must be there exactly once: a mutant whose place has moved fails loudly. It is
`noticed` by laws of the audit (by their names), by tests (by their node ids), or by both; all that are named must.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: in words of the privacy claim.
        file: below the top of the checkout.
        old, new: the patch.
        laws: of the audit that must be violated, as `<family>: <name of the law>`.
        tests: node ids that must fail.
    """

    name: str
    file: str
    old: str
    new: str
    laws: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


def apply(mutant: Mutant, root: Path) -> None:
    """Patch the copy of the package below `root`.

    Raises:
        ValueError: where the text is not there exactly once, or the patch changes nothing.
    """
    path = root / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1 or mutant.old == mutant.new:
        raise ValueError(
            f"mutant {mutant.name!r}: its text is {text.count(mutant.old)} times in {mutant.file}, once is needed: the "
            "code has moved on; write the fault anew"
        )
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


NOISE, HOSPITAL, TRAINING = "fedhpc/privacy/noise.py", "fedhpc/site/hospital.py", "fedhpc/site/training/local_sgd.py"
DP_SGD, LEDGER, ACCOUNTANT = (
    "fedhpc/site/training/dp_sgd.py",
    "fedhpc/privacy/ledger.py",
    "fedhpc/privacy/accountant.py",
)
ROUND_TESTS = "tests/site/test_private_round.py::"
PRIVACY_TESTS = "tests/site/training/test_dp_sgd.py::"

CHARGE = "            if place.plan is not None:\n                self.budget.charge_round(round)\n"
PRIVATE_STEPS = """
        def trained() -> F32:
            from_vector(place.model, params)
            with self.failing(what):
                train_plain(local) if work is None else train_private(local, work)
"""
MUTANTS = (
    Mutant(
        "noise x 0.7",
        DP_SGD,
        "        std = terms.noise_multiplier * terms.clip_norm",
        "        std = 0.7 * terms.noise_multiplier * terms.clip_norm",
        laws=("noise: noise of each step", "noise: noise of each site", "network: noise of each tensor"),
        tests=(f"{ROUND_TESTS}test_every_step_adds_the_planned_noise",),
    ),
    Mutant(
        "no noise on the last step",
        TRAINING,
        "                step(images, labels, owner, batch.last)\n",
        "                if done + 1 == work.plan.steps_per_round:\n"
        "                    step = replace(step, terms=replace(step.terms, noise_multiplier=0.0))\n"
        "                step(images, labels, owner, batch.last)\n",
        laws=("noise: noise of each step", "network: noise of the weights"),
        tests=(f"{ROUND_TESTS}test_every_step_adds_the_planned_noise",),
    ),
    Mutant(
        "no noise on the biases",
        DP_SGD,
        "            p.grad = part.view_as(p)\n",
        "            p.grad = part.view_as(p) * (p.ndim > 1)\n",
        laws=("network: noise of the biases", "network: noise of each tensor"),
        tests=(f"{ROUND_TESTS}test_every_step_adds_the_planned_noise",),
    ),
    Mutant(
        "seed of 8 bits",
        NOISE,
        "        return cls(os.urandom(KEY_BYTES))",
        "        return cls(os.urandom(1).ljust(KEY_BYTES))",
        laws=("noise: noise never repeats", "entropy: entropy of the noise", "entropy: seed of more than 16 bits"),
        tests=(f"{ROUND_TESTS}test_noise_depends_on_all_bits_of_its_key",),
    ),
    Mutant(
        "seed of 32 bits",
        NOISE,
        "        return cls(os.urandom(KEY_BYTES))",
        "        return cls(os.urandom(4).ljust(KEY_BYTES))",
        laws=("entropy: entropy of the noise", "collisions: seed of more than 32 bits"),
        tests=(f"{ROUND_TESTS}test_noise_depends_on_all_bits_of_its_key",),
    ),
    Mutant(
        "key of 64 bits",
        NOISE,
        "        return cls(os.urandom(KEY_BYTES))",
        "        return cls(os.urandom(8).ljust(KEY_BYTES))",
        laws=("entropy: entropy of the noise",),
        tests=(f"{ROUND_TESTS}test_noise_depends_on_all_bits_of_its_key",),
    ),
    Mutant(
        "one seed at all sites",
        NOISE,
        "    return KeyStream.fresh() if noise_seed is None else KeyStream.of_seed(noise_seed, site, round, purpose)",
        "    return KeyStream.of_seed(noise_seed or 0, round, purpose)",
        laws=("noise: noise never repeats", "entropy: entropy of the noise"),
        tests=(f"{PRIVACY_TESTS}test_noise_differs_between_sites_rounds_and_starts",),
    ),
    Mutant(
        "leak through momentum",
        DP_SGD,
        "        clipped.clear()\n"
        "        for p, part in zip(clipped.trained, clipped.split(mean), strict=True):\n"
        "            p.grad = part.view_as(p)\n"
        "        self.optimizer.step()\n",
        "        clean = clipped.split((clipped.total / terms.expected_units).to(mean.dtype))\n"
        "        clipped.clear()\n"
        "        for p, part in zip(clipped.trained, clipped.split(mean), strict=True):\n"
        "            p.grad = part.view_as(p)\n"
        "        self.optimizer.step()\n"
        "        for p, part in zip(clipped.trained, clean, strict=True):\n"
        "            self.optimizer._buffers[p] = part.view_as(p).clone()\n",
        laws=("noise: noise of each step", "noise: noise never repeats"),
        tests=(f"{ROUND_TESTS}test_every_step_adds_the_planned_noise",),
    ),
    Mutant(
        "clip norm x 2",
        "fedhpc/site/per_example/clipped_sum.py",
        "        factors = (self._clip_norm / squares.sqrt()).clamp(max=1)",
        "        factors = (2 * self._clip_norm / squares.sqrt()).clamp(max=1)",
        laws=("units: clip norm",),
        tests=(f"{PRIVACY_TESTS}test_a_whole_patient_moves_the_sum_by_at_most_clip_norm",),
    ),
    Mutant(
        "image for patient unit",
        DP_SGD,
        '        if unit == "image":\n',
        "        if unit:\n",
        laws=("units: clip norm",),
        tests=(f"{PRIVACY_TESTS}test_units_are_patients_or_images",),
    ),
    Mutant(
        "fixed batches for Poisson",
        DP_SGD,
        "        chosen = np.flatnonzero(stream.uniform(len(self.rows)) < sample_rate)\n",
        "        chosen = stream.chosen(len(self.rows), round(sample_rate * len(self.rows)))\n",
        laws=("units: Poisson sampling, batch sizes vary",),
        tests=(f"{PRIVACY_TESTS}test_sampling_is_poisson",),
    ),
    Mutant(
        "the true count as denominator",
        TRAINING,
        "plan.sample_rate * work.weight, work.entropy.noise\n",
        "plan.sample_rate * len(work.units.rows), work.entropy.noise\n",
        laws=("units: clip norm", "units: declared denominator"),
        tests=(f"{ROUND_TESTS}test_the_denominator_is_the_declared_count",),
    ),
    Mutant(
        "the ledger charges fewer steps",
        "fedhpc/privacy/plan.py",
        "        return Charge(round, self.noise_multiplier, self.sample_rate, self.steps_per_round, self.mechanism)",
        "        return Charge(round, self.noise_multiplier, self.sample_rate, 1, self.mechanism)",
        laws=("ledger: ledger, all steps", "ledger: ledger before the steps"),
        tests=(f"{ROUND_TESTS}test_all_steps_are_charged_before_the_first",),
    ),
    Mutant(
        "charges after the steps",
        HOSPITAL,
        f"{CHARGE}{PRIVATE_STEPS}",
        f"{PRIVATE_STEPS}{CHARGE}",
        laws=("ledger: ledger before the steps",),
        tests=(f"{ROUND_TESTS}test_all_steps_are_charged_before_the_first",),
    ),
    Mutant(
        "the account is not charged",
        LEDGER,
        "            account.ledger.write(request)\n",
        "            pass\n",
        laws=("ledger: account before the steps", "ledger: account, all steps"),
        tests=("tests/privacy/test_ledger.py::test_runs_at_the_same_time_share_an_account",),
    ),
    Mutant(
        "cap ignored",
        LEDGER,
        "    if refused:\n        raise PrivacyError(",
        "    if refused and not account:\n        raise PrivacyError(",
        laws=("ledger: cap of the account",),
        tests=("tests/privacy/test_ledger.py::test_a_lower_cap_holds_over_runs",),
    ),
    Mutant(
        "PRV x 0.9",
        "fedhpc/privacy/prv.py",
        "            epsilon = float(prv.get_epsilon(delta, eps_error=error))\n",
        "            epsilon = 0.9 * float(prv.get_epsilon(delta, eps_error=error))\n",
        laws=("accountant: another accountant, sampled", "accountant: accountant of the ledger, sampled"),
        tests=("tests/privacy/test_accountant.py::test_both_bounds_agree_with_googles",),
    ),
    Mutant(
        "epsilon of full batches x 0.9",
        ACCOUNTANT,
        "    full = exact_epsilon(composed_mu(history), delta)\n",
        "    full = 0.9 * exact_epsilon(composed_mu(history), delta)\n",
        laws=("accountant: accountant of the ledger",),
        tests=("tests/privacy/test_accountant.py::test_full_batches_are_gaussian_releases",),
    ),
    Mutant(
        "Skellam noise x 0.7",
        "fedhpc/site/training/secure_contribution.py",
        "    return kept + draw(grid.site_variance, kept.size, noise)",
        "    return kept + draw(grid.site_variance, kept.size, noise) * 7 // 10",
        laws=("secure: share of the noise", "secure: honest sites alone"),
        tests=(f"{ROUND_TESTS}test_a_share_of_a_secure_sum_has_the_planned_variance",),
    ),
    Mutant(
        "all sites counted honest",
        "fedhpc/config/schema.py",
        "        return len(self.data.sites) - (self.privacy.colluding_sites or 0) - self.privacy.tolerated_dropouts",
        "        return len(self.data.sites)",
        laws=("secure: honest sites alone",),
        tests=("tests/algorithms/test_secure_fedavg.py::test_what_is_allowed",),
    ),
    Mutant(
        "float noise instead of grid noise",
        DP_SGD,
        "        mean = released(clipped.total, noise, terms.expected_units, clipped.mean)\n",
        "        import torch\n\n"
        "        u, v = torch.from_numpy(noise.stream.uniform(2 * len(clipped.total))).float().chunk(2)\n"
        "        normal = torch.sqrt(-2 * torch.log1p(-u)) * torch.cos(2 * torch.pi * v)\n"
        "        mean = clipped.mean.copy_(clipped.total.float() + std * normal).div_(terms.expected_units)\n",
        tests=("tests/attacks/test_lattice.py::test_every_release_is_possible_in_both_worlds",),
    ),
    Mutant(
        "evaluation noise x 0.7",
        "fedhpc/site/release.py",
        "    return counts + noise.reshape(counts.shape)",
        "    return counts + noise.reshape(counts.shape) * 7 // 10",
        tests=(f"{ROUND_TESTS}test_evaluation_adds_the_planned_noise",),
    ),
    Mutant(
        "evaluation not charged",
        "fedhpc/site/answers.py",
        "        self._ledger.begin_answer(charge, self._plan.epsilon * ROUNDING, question.split, due=due)\n",
        "        pass\n",
        tests=(f"{ROUND_TESTS}test_an_evaluation_is_charged",),
    ),
    Mutant(
        "answers are counted in the run directory alone",
        LEDGER,
        "            if due or not self._has_paid_answer(charge.round, split):\n",
        "            if due:\n",
        tests=("tests/attacks/test_copied_runs.py::test_answers_at_once_share_one_charge",),
    ),
    Mutant(
        "feature mean noise x 0.7",
        "fedhpc/site/training/feature_mean.py",
        "    noise = Noise(noise_multiplier * grid.l2, ",
        "    noise = Noise(0.7 * noise_multiplier * grid.l2, ",
        laws=("feature mean: noise of the feature mean",),
        tests=("tests/site/training/test_feature_mean.py::test_noise_is_as_planned",),
    ),
    Mutant(
        "feature mean not charged",
        "fedhpc/site/budget.py",
        "        self.ledger.charge(charge, self._config.privacy.epsilon)\n        return charge.noise_multiplier\n",
        "        return charge.noise_multiplier\n",
        laws=("feature mean: feature mean, charges",),
        tests=("tests/attacks/test_feature_mean.py::test_release_is_charged_once_and_kept",),
    ),
    Mutant(
        "a problem of this rank counts only where rank 0 passes it on",
        "fedhpc/transport/collectives.py",
        "    if problem:\n",
        "    if problem and not told and transport.rank == 0:\n",
        tests=(
            "tests/attacks/test_false_aggregator.py::test_problem_that_rank_0_keeps_to_itself_ends_the_rank_that_has_it",
        ),
    ),
    Mutant(
        "shares of noise not compared with the charge",
        "fedhpc/privacy/plan.py",
        '    if config.privacy.trust == "sites" and len({',
        '    if config.privacy.trust == "none" and len({',
        tests=(
            "tests/attacks/test_false_aggregator.py::test_sites_that_share_the_noise_are_charged_for_what_is_added",
        ),
    ),
    Mutant(
        "threshold rule of the secure sum dropped",
        "fedhpc/secagg/masks.py",
        "        if self.colluding < 0 or 2 * self.threshold <= self.sites + self.colluding:\n",
        "        if self.colluding < 0:\n",
        tests=("tests/attacks/test_secure_sum.py::test_that_threshold_is_refused_by_protocol_and_config",),
    ),
    Mutant(
        "unsigned round keys accepted",
        "fedhpc/secagg/signatures.py",
        "            self.keys[site].verify(encode_dss_signature(r, s), statement, ec.ECDSA(SHA256()))\n",
        "            encode_dss_signature(r, s)\n",
        tests=("tests/attacks/test_secure_sum.py::test_round_keys_of_the_aggregator_are_refused",),
    ),
)
