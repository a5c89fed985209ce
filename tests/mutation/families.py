"""The audit's laws on claims so small that a mutant costs a second; imported anew for each mutated copy."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from fedhpc.audit.entropy_laws import collision_law, entropy_law
from fedhpc.audit.feature_mean_laws import feature_mean_laws
from fedhpc.audit.findings import Law
from fedhpc.audit.ledger_laws import accountant_laws, ledger_laws
from fedhpc.audit.noise_laws import canary_laws, observe_canaries, observe_own_network, own_network_laws
from fedhpc.audit.observation import Claim
from fedhpc.audit.secure_laws import observe_secure_units, observe_shares, secure_unit_laws, share_laws
from fedhpc.audit.unit_laws import observe_units, unit_laws
from fedhpc.config.schema import RunConfig
from fedhpc.models.device import Device
from fedhpc.privacy.plan import PrivacyPlan, plan_privacy

INPUTS, CLASSES, ROUNDS = 20, 2, 100
SITES = ("a", "b", "c", "d")


def claim_of(privacy: dict[str, object], plan: PrivacyPlan | None = None, **sections: dict[str, object]) -> Claim:
    """A small head with offsets, four sites; the plan that the product makes takes seconds, unless it is given."""
    tree = {
        "name": "mutant",
        "data": {"shards": "{site}.h5", "sites": [{"name": name, "weight": 40} for name in SITES]},
        "training": {"rounds": 3, "local_epochs": 1},
        "privacy": {"epsilon": 1.0, **privacy},
        **sections,
    }
    config = RunConfig.model_validate(tree)
    model = nn.Sequential(nn.LayerNorm(INPUTS, elementwise_affine=False), nn.Linear(INPUTS, CLASSES))
    device = Device(torch.device("cpu"), bf16=False)
    return Claim(config, plan or plan_privacy(config), model, (INPUTS,), CLASSES, True, device, 0)


def at_aggregator() -> Claim:
    """Two steps a round, of half of the units each."""
    return claim_of({"sample_rate": 0.5}, PrivacyPlan(4.0, 0.5, 2))


def at_sites() -> Claim:
    """A secure sum."""
    secure: dict[str, object] = {"sample_rate": 1, "trust": "sites", "colluding_sites": 1}
    return claim_of(secure, exchange={"density": 1})


def noise() -> Iterator[Law]:
    """Noise, contribution, independence and shape, at two sites."""
    claim = at_aggregator()
    yield from canary_laws(claim, observe_canaries(claim, SITES[:2], ROUNDS), claim.plan.noise_multiplier)


def network() -> Iterator[Law]:
    """Tensors, weights and biases."""
    claim = at_aggregator()
    yield from own_network_laws(observe_own_network(claim), claim.plan.noise_multiplier)


def entropy() -> Iterator[Law]:
    """By known entropy, and by collisions of 16 bits."""
    claim = at_aggregator()
    yield entropy_law(replace(claim, plan=replace(claim.plan, sample_rate=1.0, steps_per_round=1)))
    yield collision_law(16)


def accountant() -> Iterator[Law]:
    """Plans of the product, with full batches and with sampled ones."""
    yield from accountant_laws(claim_of({"sample_rate": 1.0}))
    for law in accountant_laws(claim_of({"sample_rate": 0.25}, training={"rounds": 2, "local_epochs": 1})):
        yield replace(law, attack=f"{law.attack}, sampled")


def secure() -> Iterator[Law]:
    """Shares and units of a secure sum."""
    claim = at_sites()
    yield from share_laws(claim, *observe_shares(claim))
    yield from secure_unit_laws(claim, observe_secure_units(claim))


def feature_mean() -> Iterator[Law]:
    """The one release before the rounds, of either trust."""
    model: dict[str, object] = {"name": "frozen", "backbone": "phantom", "features": 48, "feature_mean": "sites"}
    sites = [{"name": name, "weight": 40} for name in SITES]
    data: dict[str, object] = {"shards": "{site}.h5", "sites": sites, "public_reference": "phantoms"}
    for privacy in ({}, {"trust": "sites", "colluding_sites": 1}):
        more: dict[str, object] = {"sample_rate": 1, **privacy}
        yield from feature_mean_laws(claim_of(more, exchange={"density": 1}, model=model, data=data))


FAMILIES: dict[str, Callable[[], Iterator[Law]]] = {
    "noise": noise,
    "network": network,
    "entropy": entropy,
    "collisions": lambda: iter([collision_law(32)]),
    "units": lambda: unit_laws(at_aggregator(), observe_units(at_aggregator())),
    "ledger": lambda: ledger_laws(at_aggregator()),
    "accountant": accountant,
    "secure": secure,
    "feature mean": feature_mean,
}
