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


class Kept(nn.Module):
    """Keeps something of images outside of its buffers."""

    mean = 0.0
    first = None
    activation = None


def mean_for_evaluation(task):
    return nn.Sequential(MeanForEvaluation(), _net(task))


class MeanForEvaluation(Kept):
    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            return x
        return x - self.mean


def scaled_by_first_batch(task):
    return nn.Sequential(ScaledByFirstBatch(), _net(task))


class ScaledByFirstBatch(Kept):
    def forward(self, x):
        if self.first is None:
            self.first = x.detach().std()
        return x / self.first


def scaled_by_largest_pixel(task):
    return nn.Sequential(ScaledByLargestPixel(), _net(task))


class ScaledByLargestPixel(nn.Module):
    def forward(self, x):
        return x / x.max() if x.max() > 1 else x


def centred_in_large_batches(task):
    return nn.Sequential(CentredInLargeBatches(), _net(task))


class CentredInLargeBatches(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0) if len(x) >= 32 else x


def rare_drop(task):
    return _net(task, RareDrop())


class RareDrop(nn.Module):
    """Stochastic depth that no pass of a few images shows."""

    def forward(self, x):
        return x * (torch.rand(len(x), 1, 1, 1) > 1e-7) if self.training else x


def rare_numpy_flip(task):
    return nn.Sequential(RareNumpyFlip(), _net(task))


class RareNumpyFlip(nn.Module):
    def forward(self, x):
        return x.flip(3) if np.random.random() < 1e-7 else x


def squeezed(task):
    return nn.Sequential(_net(task), Squeezed())


class Squeezed(nn.Module):
    def forward(self, x):
        return x.squeeze()


def unsqueezed(task):
    return nn.Sequential(_net(task), Squeezed(), Transposed())


class Transposed(nn.Module):
    def forward(self, x):
        return x.permute(1, 0).permute(1, 0)


def keeps_activation(task):
    return _net(task, KeepsActivation())


class KeepsActivation(Kept):
    def forward(self, x):
        self.activation = 2 * x
        return x


def exits(task):
    raise SystemExit(0)


def dark_images(task):
    """Good: an image may have a gradient of zero."""
    return nn.Sequential(Dark(), nn.Flatten(), nn.Linear(task.image_shape[1] * task.image_shape[2], 2, bias=False))


class Dark(nn.Module):
    def forward(self, x):
        return torch.where(x.amax((1, 2, 3), keepdim=True) > 3, x, 0 * x)
