"""A canary is the worst unit that the guarantee allows for: one clipped gradient, in a direction of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedhpc.audit.canaries import Blank, CanarySamples, head_canaries, network_canaries
from fedhpc.audit.mechanism import Mechanism, mechanism_config
from fedhpc.audit.target import Subject
from fedhpc.audit.transmission import WORST_CASE, AuditedSite, released
from fedhpc.models.device import Device
from fedhpc.models.vector import to_vector
from fedhpc.models.whitening import Whitening
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.training.dp_sgd import Units
from fedhpc.site.training.local_sgd import mirrored

CPU = Device(torch.device("cpu"), bf16=False)
COUNT = 6
INCLUDED = np.array([True, False, True, True, False, False])


def quiet(subject: Subject, head: bool) -> Mechanism:
    """One step of all units without noise."""
    config = mechanism_config(subject.config, rounds=1, local_epochs=1, sample_rate=1.0)
    return Mechanism(config, PrivacyPlan(0.0, 1.0, 1), config.privacy.clip_norm, head, CPU)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 30.0])
def test_each_canary_contributes_one_clip_norm_in_its_own_direction(
    subject: Subject, head: bool, clip_norm: float
) -> None:
    mechanism = quiet(subject, head)
    config = mechanism.config.replace({"privacy.clip_norm": clip_norm})
    scores = replace(mechanism, config=config, clip_norm=clip_norm).one_round(INCLUDED)
    # A part of a head's canary is in the bias.
    np.testing.assert_allclose(scores, INCLUDED.astype(float), atol=0.01 if head else 1e-3)


@pytest.mark.usefixtures("same_entropy")
@pytest.mark.parametrize("head", [False, True])
def test_a_mechanisms_noise_is_seen_in_its_scores(subject: Subject, head: bool) -> None:
    noisy = replace(quiet(subject, head), plan=PrivacyPlan(3.0, 1.0, 1))
    scores = noisy.one_round(np.arange(4000) == 0)
    assert scores.std() == pytest.approx(3.0, rel=0.05)


def test_canaries_leave_the_networks_answers_and_gradients_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    model = network_canaries(network, COUNT, 3, 10.0).module
    nn.init.normal_(model.canaries.weight)
    images = torch.randn(4, 1, 4, 4)
    numbered = torch.cat([images, torch.zeros(4, 1, 4, 4)], dim=1)
    torch.testing.assert_close(model(numbered), network(images), rtol=0, atol=0)
    canary = torch.cat([torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 2.0)], dim=1)
    nn.functional.cross_entropy(model(canary), torch.tensor([0])).backward()
    assert not any(p.grad.any() for p in network.parameters())
    assert model.canaries.weight.grad.norm() == pytest.approx(10.0)
    assert model.canaries.weight.grad[0, 1] == pytest.approx(-10.0)


def whitened_head() -> nn.Sequential:
    whitening = Whitening(8, 4)
    whitening.projection.normal_()
    return nn.Sequential(whitening, nn.Linear(4, 3, bias=False))


@pytest.mark.parametrize("whitened", [False, True])
def test_a_head_with_canaries_answers_patients_as_the_head_does(whitened: bool) -> None:
    torch.manual_seed(0)
    head = whitened_head() if whitened else nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3))
    canaries = head_canaries(head, COUNT, 3, 10.0)
    features = torch.randn(5, 8)
    numbered = torch.cat([features, torch.zeros(5, 1)], dim=1)
    torch.testing.assert_close(canaries.module(numbered), head(features))
    pushed = torch.cat([torch.zeros(1, 8), torch.full((1, 1), 2.0)], dim=1)
    nn.functional.cross_entropy(canaries.module(pushed), torch.tensor([0])).backward()
    gradient = torch.cat([p.grad.flatten() for p in canaries.module.parameters()]).numpy()
    assert np.argmax(canaries.scores(-gradient)) == 1, "the second canary's own column"


def test_samples_mark_canaries_and_only_those_of_the_coins_train(subject: Subject) -> None:
    samples = CanarySamples(INCLUDED, subject.samples)
    n, train = len(subject.samples.labels), subject.samples.indices("train")
    assert samples.indices("train").tolist() == [*train.tolist(), n, n + 2, n + 3]
    assert samples.indices("test").tolist() == subject.samples.indices("test").tolist()
    inputs = samples.inputs(np.array([n + 2, train[0]]))
    assert inputs.shape == (2, 2, 32, 32)
    assert (inputs[0, 0] == 0).all() and (inputs[0, 1] == 3).all()
    assert (inputs[1, 1] == 0).all()
    torch.testing.assert_close(inputs[1:, :1], subject.samples.inputs(train[:1]))
    torch.testing.assert_close(mirrored(inputs, np.random.default_rng(0).random(len(inputs)))[:, 1], inputs[:, 1])
    units = Units.of(samples, "patient", 4)
    assert sum(rows.tolist() == [n + 2] for rows in units.rows) == 1


def test_what_leaves_is_what_the_round_sends(subject: Subject) -> None:
    """The audit's own site trains like the product's: the same update, decoded from the payload."""
    model = network_canaries(Blank(2), COUNT, 2, 10.0).module
    config = mechanism_config(subject.config, rounds=1, local_epochs=1, sample_rate=1.0)
    site = AuditedSite("a", 3, model, CanarySamples(INCLUDED), config, PrivacyPlan(0.0, 1.0, 1), COUNT, CPU)
    start = to_vector(model)
    sent = released(site, start, 0, WORST_CASE)
    np.testing.assert_array_equal(sent, site.train(start, 0))
    assert sent.any()
