"""Every kind of network that a federation must not train is refused before training, with its own message."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.build import build_model
from fedhpc.models.task import Task
from fedhpc.run.start.network import checked_network

BAD = Path(__file__).with_name("bad_models.py")
TASK = Task(("benign", "malignant"), (1, 16, 16))
GROUPS = ["group", {"num_groups": 8}]
SITES = [{"name": name, "weight": 100} for name in ("a", "b", "c", "d")]
PRIVATE: dict[str, Any] = {"privacy": {"epsilon": 8}}
SECURE: dict[str, Any] = {
    "privacy": {"epsilon": 8, "trust": "sites", "colluding_sites": 1, "sample_rate": 1},
    "exchange": {"density": 1},
    "training": {"local_epochs": 1},
}
PLAIN: dict[str, Any] = {"privacy": {"off": True}}


def config(model: dict[str, Any], sections: dict[str, Any]) -> RunConfig:
    data = {"shards": "{site}.h5", "sites": SITES}
    return RunConfig.model_validate({"name": "x", "data": data, "model": model, **sections})


def own(function: str, sections: dict[str, Any]) -> torch.nn.Module:
    return checked_network(config({"build": f"{BAD}:{function}"}, sections), TASK)


ALWAYS = {
    "batch_norm": r"layer 1: batch norm keeps statistics.*Use nn\.GroupNorm",
    "tracking_instance_norm": "layer 1: keeps running statistics.*track_running_stats=False",
    "running_mean": r"buffer 1\.average: changes with the images",
    "in_place": "changes a value in place that its gradient needs.*inplace=False",
    "unused_layer": r"parameter 0\.never: gets no gradient",
    "detached": r"parameter 0\.weight, 0\.bias: gets no gradient",
    "three_outputs": r"gives torch\.float32 \(4, 3\) for 4 images; the task has 2 classes",
    "softmax_over_batch": "mixes patients",
    "numpy_noise": "different outputs for the same images and the same torch seed",
    "numpy_weights": "built twice, it has different initial weights",
    "three_channels": r"fails on images of shape \(4, 1, 16, 16\).*3 channels",
    "lazy_layer": "has no size yet",
    "no_module": r"no_module returned a function\. Return a torch\.nn\.Module",
    "raises": r"ValueError: no weights here \(line \d+\)",
    "float64": "is not float32",
    "mean_for_evaluation": "other logits in evaluation for the same images after other images",
    "scaled_by_first_batch": "keeps something of patients between forward passes",
    "scaled_by_largest_pixel": "a batch of 4 .* mixes patients",
    "centred_in_large_batches": r"a batch of \d\d+ .* mixes patients",
    "rare_numpy_flip": "different outputs for the same images and the same torch seed",
    "squeezed": r"gives \(2,\) for one image and \(4, 2\) for 4",
    "unsqueezed": r"fails on images of shape \(1, 1, 16, 16\).*any number of them",
    "exits": "failed when called with.*SystemExit",
}
WITH_PRIVACY = {
    "dropout": "is random in training.*dropout probability to 0",
    "rare_drop": "is random in training",
    "keeps_activation": "cannot be copied .*Keep no result of a forward pass",
    "reads_weight": r"parameter body\.0\.weight: used outside of its own layer's forward",
    "wrong_gradient": r"parameter 0\.layer\.weight: its clipped gradients disagree with torch\.func",
    "sequence_layer": r"2\.rnn: its rows are not images",
}
WITH_SECURE_SUM = {
    "dropout": "is random in training",
    "reads_weight": "disagree with torch",
    "wrong_gradient": "disagree with torch",
    "sequence_layer": "backward pass fails",
}


@pytest.mark.parametrize(
    ("sections", "function", "message"),
    [
        *((PLAIN, *case) for case in ALWAYS.items()),
        *((PRIVATE, *case) for case in {**ALWAYS, **WITH_PRIVACY}.items()),
        *((SECURE, *case) for case in WITH_SECURE_SUM.items()),
    ],
)
def test_bad_network_is_refused(sections: dict[str, Any], function: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^model.build=.*{message}") as refused:
        own(function, sections)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("sections", [PLAIN, PRIVATE, SECURE])
def test_good_network_is_accepted_unchanged(sections: dict[str, Any]) -> None:
    network = own("good", sections)
    unchecked = build_model(config({"build": f"{BAD}:good"}, sections), TASK)
    for one, other in zip(network.state_dict().values(), unchecked.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert all(p.grad is None for p in network.parameters())


def test_dropout_without_privacy_is_accepted() -> None:
    assert own("dropout", PLAIN)


def test_image_without_gradient_is_accepted() -> None:
    assert own("dark_images", PRIVATE)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"monai": "DenseNet121"}, r"batch norm.*Use group norm: model\.args: \{norm: \[group, \{num_groups: 8\}\]\}"),
        ({"monai": "DenseNet12"}, "MONAI has no such network; did you mean DenseNet121"),
        ({"monai": "DenseNet121", "args": {"depth": 3}}, "cannot be built with .*depth=3"),
        ({"monai": "BasicUNet"}, "the task has 2 classes"),
        ({"monai": "resnet10", "args": {"norm": GROUPS}}, "MONAI keeps it whatever"),
        ({"monai": "SEResNet50"}, "batch norm.*no argument for another norm"),
        ({"monai": "EfficientNetBN", "args": {"model_name": "efficientnet-b0", "norm": GROUPS}}, "is random in"),
    ],
)
def test_monai_network_that_does_not_fit_is_refused(model: dict[str, Any], message: str) -> None:
    task = Task(("benign", "malignant"), (1, 32, 32))
    with pytest.raises(InputError, match=f"^model.monai={model['monai']}.*{message}"):
        checked_network(config(model, PRIVATE), task)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("DenseNet121", {"init_features": 16, "growth_rate": 8, "block_config": [2, 2]}),
        ("Classifier", {"channels": [8, 8], "strides": [2, 2]}),
    ],
)
def test_monai_network_with_group_norm_trains_privately(name: str, args: dict[str, Any]) -> None:
    model = {"monai": name, "args": {"norm": GROUPS, **args}}
    network = checked_network(config(model, PRIVATE), Task(("benign", "malignant"), (1, 32, 32)))
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 2)
