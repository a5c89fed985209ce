"""All laws of a run, each with a confidence interval and a bound: what the audit judges before it attacks."""

from collections.abc import Iterator

from fedhpc.audit.entropy_laws import collision_law, entropy_law
from fedhpc.audit.feature_mean_laws import feature_mean_laws
from fedhpc.audit.findings import Law
from fedhpc.audit.ledger_laws import accountant_laws, ledger_laws
from fedhpc.audit.noise_laws import (
    ROUNDS,
    canary_laws,
    noise_by_step,
    observe_canaries,
    observe_own_network,
    own_network_laws,
)
from fedhpc.audit.observation import Claim
from fedhpc.audit.secure_laws import observe_secure_units, observe_shares, secure_unit_laws, share_laws
from fedhpc.audit.target import Subject
from fedhpc.audit.unit_laws import all_units_control, observe_units, real_patients, unit_laws

LESS_NOISE = 0.7
SEED_BITS, QUICK_SEED_BITS = 32, 16


def laws_of(claim: Claim, quick: bool) -> Iterator[Law]:
    """Those that need no patient."""
    yield from accountant_laws(claim)
    yield from feature_mean_laws(claim)
    yield collision_law(QUICK_SEED_BITS if quick else SEED_BITS)
    if claim.config.privacy.trust == "sites":
        yield from _secure(claim)
        return
    yield entropy_law(claim)
    yield from noise_laws(claim)
    yield from unit_laws(claim, observe_units(claim))
    yield from all_units_control(claim)
    yield from ledger_laws(claim)


def noise_laws(claim: Claim) -> Iterator[Law]:
    """Noise and contribution; the control adds 0.7 of the noise and must be noticed by the same measurement."""
    planned, sites = claim.plan.noise_multiplier, claim.config.site_names
    yield from canary_laws(claim, observe_canaries(claim, sites, ROUNDS), planned)
    yield from own_network_laws(observe_own_network(claim), planned)
    less = observe_canaries(claim.with_noise(LESS_NOISE), sites[:1], ROUNDS // 4)
    yield noise_by_step(less, planned, f"{LESS_NOISE} of the noise", "control")


def _secure(claim: Claim) -> Iterator[Law]:
    yield from share_laws(claim, *observe_shares(claim))
    yield from secure_unit_laws(claim, observe_secure_units(claim))


def judged(subject: Subject, seed: int, quick: bool) -> Iterator[Law]:
    """All laws of an opened site; its own patients last."""
    yield from laws_of(Claim.of(subject, seed), quick)
    if subject.config.privacy.trust == "aggregator":
        yield real_patients(subject, seed)
