"""What a shard holds, released once and privately before any training, so that an odd scanner is seen in time.

Three tables: the histogram of intensities, patients by class, patients by modality. Formal guarantee: each patient has
a weight of 1 in each table, divided among the patient's images, as integers of at most UNIT in all. So adding or
removing a patient changes the entries together by at most 3 UNIT in the L1 norm, and discrete Laplace noise of scale
3 UNIT / epsilon makes the release (epsilon, 0)-differentially private (`fedhpc.privacy.laplace`). What the entries are
of is public: bins of the declared pixel range, names of the classes, the modalities of the format. All splits count.

The charge is in the site ledger, on disk, before the noise is drawn. A second release of the same shard is refused.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import Charge
from fedhpc.privacy.laplace import laplace_integers
from fedhpc.privacy.noise import KeyStream
from fedhpc.privacy.places import Whose, check_other_names, check_synthetic, site_ledger_folder
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Owner, Request, Terms
from fedhpc.site.account import DELTA, SYNTHETIC, identities_of
from fedhpc.site.data.shard import Shard
from fedhpc.site.data.shard_format import MODALITIES, SPLITS
from fedhpc.util.arrays import F64, I64

UNIT = 2**16
"""The weight of one patient in one table, as an integer."""
BINS = 32
TABLES = 3
RUN = "statistics"
BLOCK = 256


@dataclass(frozen=True)
class Statistics:
    """What a site releases (private by its noise, so public).

    Attributes:
        site: its name.
        epsilon: what it cost every patient.
        intensities: patients [BINS] over the pixel range.
        classes: patients by class. modalities: patients by modality.
        pixel_range: of the shard.
    """

    site: str
    epsilon: float
    intensities: tuple[float, ...]
    classes: dict[str, float]
    modalities: dict[str, float]
    pixel_range: tuple[float, float]


def release(shard: Shard, path: Path, epsilon: float, ledger: str | None = None) -> Statistics:
    """Charge the site ledger and return the noisy tables.

    Args:
        shard: open (private).
        path: of the shard, beside which the ledger of synthetic patients lies.
        epsilon: of the release, 0.01 to 10.
        ledger: the folder of the site ledger; None: where runs look for it.

    Raises:
        PrivacyError: this shard's statistics were released before, the ledger refuses, or another site's ledger has
            charged some of its patients.
    """
    if not 0.01 <= epsilon <= 10:
        raise PrivacyError(f"epsilon={epsilon:g}: allowed: 0.01 to 10")
    whose = Whose(shard.site, path, shard.created_by.startswith(SYNTHETIC))
    account = SiteLedger.open_or_create(site_ledger_folder(whose, ledger), Terms("patient", DELTA))
    everybody = identities_of(shard, SPLITS)
    if whose.synthetic:
        check_synthetic(account, shard.site, everybody)
    else:
        check_other_names(account, shard.site, everybody)
    owner = Owner(f"{RUN} {shard.digest[:16]}", RUN, shard.site)
    charge = Charge(1, 1 / epsilon, 1.0, 1, "laplace", "patient")
    units = account.register(everybody)
    request = Request(charge, units, owner)
    with account.locked():
        if account.charges(owner.ledger, owner.site):
            raise PrivacyError(
                f"site {shard.site}: the statistics of this shard were released before, and each release costs its "
                "patients. Take the file of that time",
                code="privacy.site-budget",
            )
        refused = account.refusal(request)
        if refused:
            raise PrivacyError(f"site ledger of {shard.site}: {refused}", code="privacy.site-budget")
        account.write(request)
    exact = exact_tables(shard)
    noisy = exact + laplace_integers(TABLES * UNIT / epsilon, 1, len(exact), KeyStream.fresh())
    return _named(shard, noisy / UNIT, epsilon)


def exact_tables(shard: Shard) -> I64:
    """Return the three tables one after another, int64[BINS + classes + modalities] (private)."""
    names, owner = np.unique(shard.patient, return_inverse=True)
    images = np.bincount(owner)
    rows = np.concatenate([_histograms(shard), _shares(shard), _modalities(shard)], axis=1)
    patients = np.zeros((len(names), rows.shape[1]))
    np.add.at(patients, owner, rows / images[owner][:, None])
    # Rounded down patient by patient: rounding of a sum would let others decide how much one counts.
    whole: I64 = np.floor(patients * UNIT * (1 - 1e-9)).astype(np.int64).sum(axis=0)
    return whole


def _histograms(shard: Shard) -> F64:
    """Shares of each image's pixels by bin, [n, BINS]; each row sums to 1."""
    low, high = shard.pixel_range
    found = np.empty((shard.n, BINS))
    for first in range(0, shard.n, BLOCK):
        rows = np.arange(first, min(first + BLOCK, shard.n))
        flat = shard.read(rows).reshape(len(rows), -1).astype(np.float64)
        bins = np.clip(((flat - low) * (BINS / (high - low))).astype(np.int64), 0, BINS - 1)
        for place, row in enumerate(rows):
            found[row] = np.bincount(bins[place], minlength=BINS) / bins.shape[1]
    return found


def _shares(shard: Shard) -> F64:
    """Each image's classes, [n, K]; a row sums to 1, or to 0 of an image without a finding."""
    if shard.kind == "multiclass":
        return np.eye(len(shard.classes))[shard.labels]
    labels = shard.labels.astype(np.float64)
    return np.asarray(labels / np.maximum(labels.sum(axis=1, keepdims=True), 1))


def _modalities(shard: Shard) -> F64:
    known = np.array(MODALITIES, "S2")
    return np.asarray(shard.modality[:, None] == known[None], np.float64)


def _named(shard: Shard, values: F64, epsilon: float) -> Statistics:
    low, high = shard.pixel_range
    rounded = [round(value, 3) for value in values.tolist()]
    classes, modalities = rounded[BINS : BINS + len(shard.classes)], rounded[BINS + len(shard.classes) :]
    return Statistics(
        shard.site,
        epsilon,
        tuple(rounded[:BINS]),
        dict(zip(shard.classes, classes, strict=True)),
        dict(zip(MODALITIES, modalities, strict=True)),
        (low, high),
    )
