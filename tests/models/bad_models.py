"""Networks that a federation must not train, each for a reason of its own."""

import numpy as np
import torch
from torch import nn


def _net(task, *first):
    channels, height, width = task.image_shape
    last = nn.Linear(8 * height * width // 4, len(task.classes))
    return nn.Sequential(nn.Conv2d(channels, 8, 3, stride=2, padding=1), *first, nn.Flatten(), last)


def good(task):
    return _net(task, nn.GroupNorm(2, 8), nn.ReLU())


def batch_norm(task):
    return _net(task, nn.BatchNorm2d(8))


def tracking_instance_norm(task):
    return _net(task, nn.InstanceNorm2d(8, track_running_stats=True))


def running_mean(task):
    return _net(task, RunningMean())


class RunningMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(8, 1, 1))

    def forward(self, x):
        self.average.mul_(0.9).add_(0.1 * x.detach().mean(dim=(0, 2, 3))[:, None, None])
        return x - 0 * self.average


def in_place(task):
    return _net(task, InPlace())


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = self.layer(x)
        x += 1
        return y


def unused_layer(task):
    network = _net(task)
    network[0].register_parameter("never", nn.Parameter(torch.ones(3)))
    return network


def detached(task):
    network = _net(task)
    network[0].register_forward_hook(lambda module, inputs, output: output.detach())
    return network


def three_outputs(task):
    return nn.Sequential(_net(task), nn.Linear(len(task.classes), 3))


def softmax_over_batch(task):
    return _net(task, BatchMean())


class BatchMean(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0, keepdim=True)


def dropout(task):
    return _net(task, nn.Dropout(0.5))


def numpy_noise(task):
    return _net(task, NumpyNoise())


class NumpyNoise(nn.Module):
    def forward(self, x):
        return x + float(np.random.default_rng().normal())


def numpy_weights(task):
    network = _net(task)
    with torch.no_grad():
        network[0].weight.fill_(float(np.random.default_rng().normal()))
    return network


def three_channels(task):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 14 * 14, len(task.classes)))


def lazy_layer(task):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(len(task.classes)))


def no_module(task):
    return lambda images: images


def raises(task):
    raise ValueError("no weights here")


def reads_weight(task):
    return ReadsWeight(task)


class ReadsWeight(nn.Module):
    """Uses a layer's weight outside of the layer, where the engine does not see it."""

    def __init__(self, task):
        super().__init__()
        self.body = _net(task)

    def forward(self, images):
        return self.body(images) * (1 + self.body[0].weight.sum())


def wrong_gradient(task):
    return nn.Sequential(WrongGradient(*task.image_shape), nn.Linear(4, len(task.classes)))


class Doubled(torch.autograd.Function):
    """The identity, whose backward pass depends on how many images there are."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad * len(grad)


class WrongGradient(nn.Module):
    def __init__(self, channels, height, width):
        super().__init__()
        self.layer = nn.Linear(channels * height * width, 4)

    def forward(self, images):
        return Doubled.apply(self.layer(images.flatten(1)))


def sequence_layer(task):
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (task.image_shape[1], -1)), Rows(task))


class Rows(nn.Module):
    """A recurrent network with the images in its second dimension."""

    def __init__(self, task):
        super().__init__()
        self.rnn = nn.GRU(task.image_shape[0] * task.image_shape[2], 4)
        self.head = nn.Linear(4, len(task.classes))

    def forward(self, rows):
        return self.head(self.rnn(rows.transpose(0, 1))[0][-1])


def float64(task):
    return _net(task).double()
