"""The seam of the round: what an algorithm adds to FedAvg.

    each site:       train with `regularizer` in the loss; after sending, `after_training` gives what it keeps
                     and what it sends beside its update
    the aggregator:  a `Fold` a round takes what comes of each site, and ends with the mean update, what the
                     aggregator keeps, and what it sends to all beside its update
    everybody:       `after_round` gives what all know

Each hook sees and returns named arrays only. They are part of `RunState`, so that a run goes on bit by bit. An
algorithm's parameters are a section of the config (`fedhpc.config.algorithm`).

With privacy on, a site's update is private before any hook sees it: all that is kept and sent is post-processing.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedhpc.aggregation.base import Arrays, Flag
from fedhpc.compression.codec import decode, encode
from fedhpc.compression.error_feedback import CompressionConfig, with_feedback
from fedhpc.compression.update import LARGEST_ENTRY, SparseVector, Update
from fedhpc.errors import PayloadError
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.util.arrays import F32


@dataclass(frozen=True)
class Sender:
    """Who sends a further vector in a round, and how it becomes bytes (public)."""

    index: int
    round: int
    coding: CompressionConfig
    draws: np.random.Generator | None = None

    def encode(self, vector: F32, residual: F32) -> tuple[bytes, SparseVector, F32]:
        """Return (payload, what it holds, the rest f32[d]) of f32[d] plus a residual."""
        sent, rest = with_feedback(vector, residual, self.coding, self.draws)
        return encode(Update(self.index, self.round, sent)), sent, rest

    def decode(self, payload: bytes, size: int) -> SparseVector:
        """Return what `encode` gave of a vector of `size` entries.

        Raises:
            PayloadError: another sender, round or size, no such payload, or an entry longer than `LARGEST_ENTRY`.
        """
        entries = decode(payload, sender=self.index, round=self.round, size=size).entries
        if not (np.abs(entries.values) <= LARGEST_ENTRY).all():
            raise PayloadError(
                f"round {self.round + 1}: an entry of what it sent beside its update is longer than {LARGEST_ENTRY:g}; "
                "the round was refused. Look into this site's training, and lower training.lr where it diverges",
                code="payload.not-finite",
            )
        return entries


@dataclass(frozen=True)
class Trained:
    """What one site's round of training gave.

    Attributes:
        update: local - global, f32[d]; with privacy on private already.
        sent: what goes to the aggregator of it, with the residual of earlier rounds.
        gradient_weight: the update is minus so many times a weighted mean of the round's gradients.
        sender: the site, for what it sends beside the update.
    """

    update: F32
    sent: SparseVector
    gradient_weight: float
    sender: Sender


@dataclass(frozen=True)
class Folded:
    """What the aggregator has after all sites' payloads.

    Attributes:
        mean: the update of all, f32[d].
        kept: the algorithm's arrays at the aggregator after the round.
        more: what is sent to all beside the global update.
        rule, flags: what the aggregation rule keeps, and the sites that it found far out; the round fills them in.
    """

    mean: F32
    kept: Arrays = field(default_factory=dict)
    more: bytes = b""
    rule: Arrays = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()


class Fold:
    """One round at the aggregator; this one is FedAvg's and changes nothing."""

    def add(self, update: SparseVector, weight: int, more: bytes, sender: Sender) -> SparseVector:
        """Take what a site has sent, in site order; return what the aggregation rule takes for its update.

        Args:
            update: f32[d], as it was sent.
            weight: the site's public weight.
            more: what came beside the update: untrusted bytes.
            sender: the site.

        Raises:
            PayloadError: where `more` is not what it must be.
        """
        return update

    def result(self, mean: F32, sender: Sender) -> Folded:
        """End the round with what the rule has made of the updates, f32[d]; `sender` is the aggregator."""
        return Folded(mean)


@dataclass(frozen=True)
class Initial:
    """An algorithm's arrays before the first round: what all know, what the aggregator keeps, what each site keeps."""

    public: Arrays = field(default_factory=dict)
    server: Arrays = field(default_factory=dict)
    site: Arrays = field(default_factory=dict)


class Algorithm:
    """What is added to FedAvg; this class is FedAvg and adds nothing.

    Attributes:
        sends_more: whether something is sent beside the updates, in both directions.
        vectors: how many vectors of the model's size a site sends a round.
    """

    sends_more = False
    vectors = 1

    def initial(self, size: int) -> Initial:
        """Return the arrays before the first round, for a model of `size` parameters."""
        return Initial()

    def regularizer(self, own: Arrays, public: Arrays) -> Regularizer:
        """Return what a site adds to its loss in a round.

        Args:
            own: what the site keeps.
            public: what all know.
        """
        return NOTHING

    def after_training(self, own: Arrays, public: Arrays, trained: Trained) -> tuple[Arrays, bytes]:
        """Return what a site keeps for the next round, and what it sends beside its update."""
        return own, b""

    def fold(self, kept: Arrays, public: Arrays) -> Fold:
        """Return the aggregator's part of one round, from what it keeps."""
        return Fold()

    def after_round(self, public: Arrays, more: bytes, sender: Sender, size: int) -> Arrays:
        """Return what all know after the round, from what the aggregator (`sender`) sent beside its update."""
        return public


PREFIX = "algorithm."
"""Of an algorithm's arrays, among all that is kept."""


def vector(kept: Arrays, name: str) -> F32:
    """Return a vector that is kept, f32[d]."""
    return kept[name].astype(np.float32, copy=False)


def of_algorithm(kept: Arrays) -> Arrays:
    """Return an algorithm's arrays, by its own names."""
    return {name.removeprefix(PREFIX): array for name, array in kept.items() if name.startswith(PREFIX)}


def with_algorithm(kept: Arrays, own: Arrays) -> Mapping[str, np.ndarray]:
    """Return all that is kept, with an algorithm's arrays in the place of those before."""
    others = {name: array for name, array in kept.items() if not name.startswith(PREFIX)}
    return {**others, **{PREFIX + name: array for name, array in own.items()}}


LENGTH = struct.Struct("<Q")


def joined(update: bytes, more: bytes) -> bytes:
    """Return one message of an update's payload and what is sent beside it; `parted` takes it apart.

    >>> parted(joined(b"update", b"more"))
    (b'update', b'more')
    """
    return LENGTH.pack(len(update)) + update + more


def parted(message: bytes) -> tuple[bytes, bytes]:
    """Return (payload of the update, what came beside it); both are untrusted still.

    Raises:
        PayloadError: a message that is shorter than it says.
    """
    start = LENGTH.size
    end = start + LENGTH.unpack_from(message)[0] if len(message) >= start else len(message) + 1
    if end > len(message):
        raise PayloadError(f"a message of {len(message)} bytes ends before the update that it announces")
    return message[start:end], message[end:]
