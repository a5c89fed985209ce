"""The sum of clipped unit gradients, exactly, in one forward and one backward pass.

Formal guarantee: for any images, labels and parameters, to add one unit to a drawn batch moves the sum by at most
`clip_norm (1 + MARGIN)` in L2 norm (Abadi et al. 2016, Algorithm 1, with a unit's gradient in place of an image's; the
margin is for rounding, and the noise is made larger by it). Sums of rounded numbers depend on the other units, so that
a bound on one clipped gradient is not enough (Casacuberta et al. 2022, "Widespread underestimation of sensitivity in
differentially private libraries"). What of the margin is proven, with n units drawn, clip_norm C, u = 2^-53:

- Sums over physical batches: added in float64 from the second on, in any order. The error of such a sum is at most n u
  times the sum of the terms' absolute values, hence n^2 u C in L2 norm, twice for two neighbouring inputs: below
  MARGIN / 4 up to `LARGEST_COUNT` units; more are refused.
- A linear head at the end (`per_example.linear_head`): logits, norms, factors and sums are float64 too, and a unit's
  logits are computed row by row, so that its gradient is a function of its own features, whatever the parameters are.
  What is added are its images' gradients. Where they cancel within a unit each may be sqrt(2) |x| long for features x,
  in the place of C: then the bound above holds up to 2^16 images whose features are no longer than 360 C.
  So are its features through the map of `model.features`, whatever the map is (`Whitening.by_rows`). Layers of another
  fixed body are taken to be functions of the image alone; their weights are the config's, and no aggregator sends them.
- Any other network with `privacy.max_physical_batch: 1`: each unit is computed by itself, so all that it adds is a
  function of that unit alone. The norm of just that vector is taken in float64, and the vector scaled down if needed.
- Padding (`multiple`): rows of zeros behind the images, each a unit of its own, whose factor is 0 where the others'
  is their clip factor. Its gradient times 0 is 0, added to the sum at its end: what it moves is the order in which a
  kernel adds the others, as any other batch size does. Where its gradient is not finite the batch is taken without it.
- Any other network in larger batches: NOT proven. float32 kernels may round a unit's gradient differently in another
  batch. Norms by Gram matrices lose digits where a gradient cancels, as of a patient with one image in two classes:
  what they may be off by is added to them (`ClippedSum._squares`). Tests measure the rest: below MARGIN / 4 for the
  networks that are shipped, with parameters as training makes them. With parameters that were made for it, all below
  `dp_sgd.LARGEST_PARAMETER`, one unit more moves the gradients of all others (tests/attacks/test_neighbours.py): so
  this bound is against an aggregator that keeps to the protocol.
"""

import contextlib
import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedhpc.errors import PrivacyError
from fedhpc.models.loss import loss
from fedhpc.site.per_example.forward_record import ForwardRecord
from fedhpc.site.per_example.kernels import gross_norms, inner_products, weighted_sum
from fedhpc.site.per_example.linear_head import LinearHead
from fedhpc.site.per_example.recorder import Recorder
from fedhpc.site.per_example.unit_order import UnitOrder

MARGIN = 2.0**-10
"""What rounding may add to the sensitivity, as a share of `clip_norm`."""
GRAM_ROUNDING = 16.0
"""Spacings of the numbers at 1 (2^-23 in float32). By no more than a quarter of that share of the square of
`kernels.gross_norms` is a squared norm by Gram matrices off (`tests/site/per_example/test_kernels.py`)."""
LARGEST_COUNT = 2**20
"""Units of one drawn batch."""


class ClippedSum:
    """Adds up the clipped gradients of units, over one or more physical batches, for a model's trained parameters.

    `mean` [d], in the parameters' precision, is memory for the released mean; the sum of a first batch lies there too.

    A unit's gradient is that of the mean loss of its images (`fedhpc.models.loss`). A unit whose gradient is not
    finite adds nothing, since no factor would bound it.
    """

    def __init__(self, model: nn.Module, clip_norm: float, multiple: int = 0) -> None:
        """Attach to `model` until `close`.

        Args:
            model: whose trained parameters' gradients are summed.
            clip_norm: C.
            multiple: pad every batch to a multiple of so many images, so that few shapes occur; 0: do not.

        Raises:
            PrivacyError: where the model cannot be trained with privacy.
        """
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not named:
            raise PrivacyError(
                "the network has no trained parameter: unfreeze one, or train without privacy", code="privacy.network"
            )
        self._names, self.trained = tuple(named), tuple(named.values())
        self._clip_norm, self._multiple = clip_norm, multiple
        self._recorder, self._head = Recorder(model), LinearHead.of(model)
        size = sum(p.numel() for p in self.trained)
        self._memory = torch.cat([p.new_empty(0) for p in self.trained])
        self.mean = self._memory.new_zeros(size)
        self._exact: Tensor | None = None
        self._units, self._batches = 0, 0

    def close(self) -> None:
        """Detach from the model, and leave it as it was."""
        self._recorder.detach()

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Return one flat part of vector [d] for each of `trained`."""
        return torch.split(vector, [p.numel() for p in self.trained])

    @property
    def total(self) -> Tensor:
        """The sum of all that was added since the last `clear`, [d] (private): `mean` or float64, both used again."""
        if self._batches == 0:
            self.mean.zero_()
        return self.mean if self._exact is None else self._exact

    @property
    def largest(self) -> float:
        """A bound on the entries of `total`."""
        return 2 * self._clip_norm * self._units

    def clear(self) -> None:
        """Begin a new sum."""
        self._units, self._batches, self._exact = 0, 0, None

    def add(self, images: Tensor, labels: Tensor, owner: Tensor) -> None:
        """Add the units of one physical batch.

        Args:
            images: [n, ...] on the model's device (private).
            labels: int64 [n], or [n, K] of several findings (private).
            owner: int64 [n], the unit of each image, from 0 on with none left out; no unit is cut (private).

        Raises:
            PrivacyError: names the layer or the parameter whose gradient would escape the clipping; or more units than
                LARGEST_COUNT.
        """
        self._units += 1 + int(owner.max()) if len(owner) else 0
        if self._units > LARGEST_COUNT:
            raise PrivacyError(f"more than {LARGEST_COUNT:,} units are drawn for one step; lower privacy.sample_rate")
        padding = -len(images) % self._multiple if self._multiple else 0
        while len(images):
            finite = self._add_if_finite(_Batch(images, labels, owner).padded(padding), padding)
            if finite is None:
                return
            finite = finite[: len(images)]
            images, labels = images[finite], labels[finite]
            owner, padding = torch.unique(owner[finite], return_inverse=True)[1], 0

    def _add_if_finite(self, batch: "_Batch", padding: int) -> Tensor | None:
        """Add the batch; or where some unit's gradient is not finite add nothing, and tell whose is, bool [n].

        The last `padding` rows are padding.
        """
        images, labels, owner = batch.images, batch.labels, batch.owner
        if self._head is not None:
            with torch.no_grad(), _full_precision(images.device):
                return self._add_head(self._head, batch, padding)
        turns = UnitOrder.of(owner)
        record = self._record(turns.arrange(images), turns.arrange(labels), turns)
        with torch.no_grad(), _full_precision(images.device):
            finite = self._add_recorded(record, turns, padding)
        return None if finite is None else turns.in_batch(finite)

    def _add_head(self, head: LinearHead, batch: "_Batch", padding: int) -> Tensor | None:
        x = head.features(batch.images)
        r = head.residuals(x, batch.labels, batch.owner)
        factor, finite = self._factors(head.squared_norms(x, r, batch.owner), padding)
        if finite is None:
            self._add(dict(zip(self.trained, head.weighted_sums(x, r, factor), strict=True)))
        return finite

    def _record(self, images: Tensor, labels: Tensor, turns: UnitOrder) -> ForwardRecord:
        """Both passes."""
        for p in self.trained:
            p.grad = None
        out, record = self._recorder.record(images, turns.pair_count)
        losses = loss(out, labels, "none")
        record.plan(self._workspace)
        with torch.autocast(images.device.type, enabled=False):
            # A sum, since a backward pass from a vector imports torch's symbolic shapes, which takes a rank a second.
            share = 1 / turns.of_images(turns.sizes).to(losses.dtype)
            (losses * share).sum().backward()  # type: ignore[no-untyped-call]
        escaped = [name for name, p in zip(self._names, self.trained, strict=True) if p.grad is not None]
        if escaped:
            raise PrivacyError(
                f"parameter {', '.join(escaped)}: used outside of its own layer's forward, where its gradient cannot "
                "be clipped; call the layer instead, or freeze the parameter",
                code="privacy.network",
            )
        record.finish()
        return record

    def _add_recorded(self, record: ForwardRecord, turns: UnitOrder, padding: int) -> Tensor | None:
        """The same as `_add_if_finite`, but bool [units]."""
        units = turns.unit_sums(record.kept)
        squares = self._squares(record, turns, units)
        # Units go by falling number of images, and equal ones as they come: padding is last.
        factor, finite = self._factors(squares, padding)
        if finite is None:
            sums = self._kept_sums(record, torch.mv(units.t(), factor))
            for use in record.by_gram:
                sums[use.layer.weight] = weighted_sum(use.layer, use.x, use.g, turns.of_images(factor))
            scale = self._shrink(sums.values()) if len(units) == padding + 1 else 1.0
            self._add(sums, scale)
        return finite

    def _squares(self, record: ForwardRecord, turns: UnitOrder, units: Tensor) -> Tensor:
        """The squared norms [units] that a unit is clipped by: never less than the truth by more than MARGIN allows.

        Where a unit's gradient cancels, over its positions or its images, Gram matrices tell less of its norm than the
        margin covers. Then what they may be off by is added: the unit counts less, not more.
        """
        squares = squared_norms(units)
        rounding = torch.zeros_like(squares)
        for use in record.by_gram:
            # Where the terms cancel, rounding can leave less than nothing.
            squares += turns.pair_sums(inner_products(use.layer, use.x, use.g, turns.pairs())).clamp_(min=0)
            rounding += turns.unit_sums(gross_norms(use.layer, use.x, use.g)).square_()
        rounding *= GRAM_ROUNDING * torch.finfo(squares.dtype).eps
        return torch.maximum(squares, (squares + rounding) / (1 + MARGIN / 2))

    def _shrink(self, parts: Iterable[Tensor]) -> float:
        """Return what the vector of these parts must be multiplied by to be no longer than the bound, in float64."""
        norm = math.sqrt(sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts))
        return min(1.0, self._clip_norm / norm) if norm else 1.0

    def _add(self, sums: dict[Tensor, Tensor], scale: float = 1.0) -> None:
        """To the total, times `scale`; a parameter that the network did not use gets nothing.

        The sum of one batch stays in the precision in which it was made. From the second on it is float64.
        """
        parts = [sums[p].reshape(-1) if p in sums else p.new_zeros(p.numel()) for p in self.trained]
        if self._batches == 0 and all(part.dtype == self.mean.dtype for part in parts):
            torch.cat(parts, out=self.mean)
            if scale != 1:
                self.mean.mul_(scale)
        else:
            if self._exact is None:
                self._exact = self.total.double()
            for total, part in zip(self.split(self._exact), parts, strict=True):
                total.add_(part, alpha=scale)
        self._batches += 1

    def _factors(self, squares: Tensor, padding: int) -> tuple[Tensor, Tensor | None]:
        """What gradients of these squared norms are multiplied by, 0 for the last `padding`; which are finite, if any
        is not."""
        finite = torch.isfinite(squares)
        # For a gradient of zero the quotient is infinite before it is bounded.
        factors = (self._clip_norm / squares.sqrt()).clamp(max=1)
        factors[len(factors) - padding :] = 0
        return factors, None if finite.all() else finite

    def _kept_sums(self, record: ForwardRecord, weighted: Tensor) -> dict[Tensor, Tensor]:
        sums = dict(zip(record.slots, torch.split(weighted, [p.numel() for p in record.slots]), strict=True))
        for p, (layer, kernel) in record.kernels.items():
            sums[p] = kernel.natural(layer, sums[p]).reshape(-1)
        return sums

    def _workspace(self, n: int, entries: int) -> Tensor:
        """Memory for [n, entries], the same for all batches: fresh pages would cost more than what is written there."""
        if self._memory.numel() < n * entries:
            self._memory = self._memory.new_empty(n * entries)
        return self._memory[: n * entries].view(n, entries)


@dataclass(frozen=True)
class _Batch:
    """Images, labels and owner as `ClippedSum.add` takes them (private)."""

    images: Tensor
    labels: Tensor
    owner: Tensor

    def padded(self, rows: int) -> "_Batch":
        """With so many rows of zeros behind, each a unit of its own, of class 0 or without a finding."""
        if not rows:
            return self
        units = torch.arange(1, rows + 1, device=self.owner.device) + self.owner.max()
        more = [t.new_zeros((rows, *t.shape[1:])) for t in (self.images, self.labels)]
        return _Batch(
            torch.cat([self.images, more[0]]), torch.cat([self.labels, more[1]]), torch.cat([self.owner, units])
        )


def squared_norms(rows: Tensor) -> Tensor:
    """Return the squared norms [k] of rows [k, entries].

    They are made in pieces: over 3e6 entries at once, float32 loses all digits of a norm but four.
    """
    piece = 1024
    whole = rows.shape[1] - rows.shape[1] % piece
    pieces = rows[:, :whole].view(len(rows), -1, piece)
    squares: Tensor = torch.linalg.vector_norm(rows[:, whole:], dim=1).square_()
    return squares.add_(torch.linalg.vector_norm(pieces, dim=2).square_().sum(1))


@dataclass
class _ProcessPrecision:
    """TF32 is off while any thread is inside: PyTorch has one setting a process (schedule.policy=deadline has threads).

    The first to enter notes what it was, and the last to leave puts it back.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    inside: int = 0
    before: tuple[str, bool] = ("highest", False)

    def enter(self) -> None:
        with self.lock:
            if not self.inside:
                self.before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
                torch.set_float32_matmul_precision("highest")
                torch.backends.cudnn.allow_tf32 = False
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                torch.set_float32_matmul_precision(self.before[0])
                torch.backends.cudnn.allow_tf32 = self.before[1]


_PRECISION = _ProcessPrecision()


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No bf16 and no TF32: norm and sum of a gradient are computed apart, and must be of the same one."""
    _PRECISION.enter()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _PRECISION.leave()
