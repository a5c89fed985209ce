"""The small network of the benchmarks, as `model.build` takes it: a user's own file."""

from torch import nn

from fedhpc.models.task import Task


def conv4(task: Task) -> nn.Module:
    """Return four 3x3 convolutions of stride 2 with group norm, 16 to 128 channels: 97,890 parameters for two classes.

    Args:
        task: channels of the images, and classes.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in ((task.image_shape[0], 16), (16, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, len(task.classes)))
