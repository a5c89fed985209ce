"""A batch of units of several images each, in the order in which sums over a unit are sums of slices."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class RowPair(NamedTuple):
    """Two equally long slices of a batch's rows."""

    first: slice
    second: slice


@dataclass(frozen=True)
class UnitOrder:
    """The order of a batch (private): one image of every unit, then a second of every unit that has two, and so on.

    Units go by falling number of images, so that unit u has row u of every turn that it takes part in, and sums over
    units touch only their own rows: what is not finite in one unit stays there.
    """

    order: Tensor | None
    """int64 [n]: which row of the batch comes where; None where it can stay as it is."""
    counts: tuple[int, ...]
    """Rows of each turn."""
    sizes: Tensor
    """int64 [units]: images of each unit."""

    @classmethod
    def of(cls, owner: Tensor) -> "UnitOrder":
        """From the unit of each image, int64 [n], which goes from 0 on with none left out.

        >>> turns = UnitOrder.of(torch.tensor([0, 1, 1, 2, 2, 2]))
        >>> turns.counts, turns.sizes.tolist(), turns.arrange(torch.arange(6)).tolist()
        ((3, 2, 1), [3, 2, 1], [3, 1, 0, 4, 2, 5])
        """
        sizes = torch.bincount(owner)
        n, units = len(owner), len(sizes)
        if n == units:
            return cls(None, (n,), sizes)
        by_owner = torch.argsort(owner, stable=True)
        turn = torch.empty_like(owner)
        turn[by_owner] = torch.arange(n, device=owner.device) - (torch.cumsum(sizes, 0) - sizes)[owner[by_owner]]
        large_first = torch.argsort(sizes, descending=True, stable=True)
        order = torch.argsort(turn * units + torch.argsort(large_first)[owner])
        return cls(order, tuple(torch.bincount(turn).tolist()), sizes[large_first])

    def arrange(self, rows: Tensor) -> Tensor:
        """Return the batch's rows [n, ...] in this order."""
        return rows if self.order is None else rows[self.order]

    def of_images(self, values: Tensor) -> Tensor:
        """Values of the units [units, ...] -> of each image's unit [n, ...], in this order."""
        return values if len(self.counts) == 1 else torch.cat([values[:k] for k in self.counts])

    def in_batch(self, values: Tensor) -> Tensor:
        """Values of the units [units] -> of each image's unit [n], in the batch's own order."""
        arranged = self.of_images(values)
        return arranged if self.order is None else arranged[torch.argsort(self.order)]

    def unit_sums(self, rows: Tensor) -> Tensor:
        """Rows [n, ...] in this order -> their sums over each unit [units, ...], in the same memory."""
        first, *rest = torch.split(rows, list(self.counts))
        for part in rest:
            first[: len(part)] += part
        return first

    def pairs(self) -> list[RowPair]:
        """Equally long slices in which image meets image of the same unit: each turn with itself and all later ones."""
        starts = [sum(self.counts[:turn]) for turn in range(len(self.counts))]
        return [
            RowPair(slice(starts[earlier], starts[earlier] + k), slice(starts[later], starts[later] + k))
            for later, k in enumerate(self.counts)
            for earlier in range(later + 1)
        ]

    def pair_sums(self, products: Tensor) -> Tensor:
        """Inner products of the vectors of `pairs` -> squared norm of each unit's sum of vectors [units]."""
        pairs = self.pairs()
        total = products.new_zeros(self.counts[0])
        for (a, b), part in zip(pairs, torch.split(products, [a.stop - a.start for a, _ in pairs]), strict=True):
            total[: len(part)] += part if a == b else 2 * part
        return total

    @property
    def pair_count(self) -> int:
        """How many pairs of images there are, each image with itself included."""
        return sum(k * (turn + 1) for turn, k in enumerate(self.counts))
