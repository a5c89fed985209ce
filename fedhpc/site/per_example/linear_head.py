"""A trained linear layer at the end of a fixed network: unit gradients in closed form, without a backward pass.

The gradient of the loss at the logits of image i is its residual r_i = softmax(logits) - one-hot(label), or of K
findings (sigmoid(logits) - labels) / K. The bias's is r_i too, and the weight's is the outer product of
r_i and the features x_i: its squared norm is |r_i|^2 (|x_i|^2 + 1), and |r_i|^2 |x_i|^2 where the layer has no bias.
All of it is computed in float64: see `fedhpc.site.per_example.clipped_sum` for why.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedhpc.models.whitening import Centring, Whitening


@dataclass(frozen=True)
class LinearHead:
    """A linear layer whose weight, and bias if any, are all that is trained, on what the fixed `body` gives."""

    body: nn.Sequential
    linear: nn.Linear

    @classmethod
    def of(cls, model: nn.Module) -> "LinearHead | None":
        """Return the head of a Sequential that ends in it; None for any other model."""
        if type(model) is not nn.Sequential or not len(model):
            return None
        last = model[-1]
        if type(last) is not nn.Linear:
            return None
        trained = {p for p in model.parameters() if p.requires_grad}
        return cls(nn.Sequential(*list(model)[:-1]), last) if trained == set(last.parameters()) else None

    @property
    def _offset(self) -> int:
        """What the bias adds to the squared length of an image's features."""
        return int(self.linear.bias is not None)

    def features(self, images: Tensor) -> Tensor:
        """x, float64 [n, d], of images [n, ...]; through the map of `model.features` each image by itself."""
        x = images
        for layer in self.body:
            x = layer.by_rows(x) if isinstance(layer, Whitening | Centring) else layer(x)
        return x.to(self.linear.weight.dtype).double()

    def residuals(self, x: Tensor, labels: Tensor, owner: Tensor) -> Tensor:
        """r [n, classes] of the mean loss of each unit: an image's own, divided by the images of its unit."""
        if labels.ndim == 1:
            r = torch.softmax(self._logits(x), dim=1)
            r[torch.arange(len(r), device=r.device), labels] -= 1
        else:
            r = (_sigmoid(self._logits(x)) - labels) / labels.shape[1]
        sizes = torch.bincount(owner)
        return r if len(sizes) == len(owner) else r / sizes[owner, None]

    def _logits(self, x: Tensor) -> Tensor:
        """[n, classes], each row a function of its own x alone.

        A matrix product rounds a row by the number of rows. With weights so large that logits cancel, as a malicious
        aggregator can send, that would change the gradients of all units of a small batch.
        """
        logits = torch.stack([(x * row).sum(dim=1) for row in self.linear.weight.double()], dim=1)
        return logits + self.linear.bias.double() if self._offset else logits

    def squared_norms(self, x: Tensor, r: Tensor, owner: Tensor) -> Tensor:
        """Return, for each image [n], the squared norm of its unit's gradient (private)."""
        if int(owner.max()) == len(owner) - 1:
            squares: Tensor = torch.linalg.vecdot(r, r) * (torch.linalg.vecdot(x, x) + self._offset)
            return squares
        # Made, class by class: inner products of images lose the digits of a gradient that cancels within its unit.
        ones = x.new_ones((len(x), self._offset))
        inputs, total = torch.cat([x, ones], dim=1), x.new_zeros(1 + int(owner.max()))
        for one in r.unbind(1):
            rows = x.new_zeros((len(total), inputs.shape[1])).index_add_(0, owner, one[:, None] * inputs)
            total += torch.linalg.vecdot(rows, rows)
        return total[owner]

    def gradients(self, x: Tensor, r: Tensor) -> Tensor:
        """Of each image, float64 [n, parameters]: the weight's, row by row, and the bias's if there is one."""
        outer = (r[:, :, None] * x[:, None, :]).flatten(1)
        return torch.cat([outer, r], dim=1) if self._offset else outer

    def weighted_sums(self, x: Tensor, r: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
        """The sums over images of factor [n] times the gradient, of the weight and of the bias if there is one."""
        r = r * factor[:, None]
        return (r.t() @ x, r.sum(0))[: 1 + self._offset]


def _sigmoid(z: Tensor) -> Tensor:
    """Return the sigmoid of z [n, K], each entry a function of its own z alone.

    `torch.sigmoid` computes the last few entries of a tensor by another function than the rest, and so rounds an entry
    by how many there are. A softmax over two entries is computed pair by pair.
    """
    return torch.softmax(torch.stack([z, torch.zeros_like(z)], dim=-1), dim=-1)[..., 0]
