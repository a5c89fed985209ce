"""Whom a charge concerns: sets of keyed hashes of patients and images. They never leave the hospital.

A key is 64 bits of HMAC-SHA256 with the site's secret key over a salt and a patient's pseudonym, or over the SHA-256 of
an image's pixels. Its last bit tells the two kinds apart. So a copy, a link, another fold, another shard or a new
import of the same patients meets the same keys, by the pseudonym or by the image. Two patients with equal keys are
counted as one, which can only make what was spent look larger.

A set is stored once, sorted, under its digest: `sets/<digest>`, uint64 little endian. A charge names the digest.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import PrivacyError
from fedhpc.privacy.anchored_chain import replace_whole
from fedhpc.privacy.hash_chain import REMEDY
from fedhpc.util.arrays import U64

KEY_BYTES = 8
DIGEST_DIGITS = 32
IMAGE_BIT = np.uint64(1)


@dataclass(frozen=True)
class Identities:
    """Of the units of a split (private): pseudonyms, and the SHA-256 of each image; `largest` images of one patient."""

    pseudonyms: tuple[bytes, ...]
    images: tuple[bytes, ...]
    largest: int = 1


@dataclass(frozen=True)
class UnitSet:
    """A stored set: its digest, and the largest number of images that one of its patients has (private)."""

    digest: str
    largest: int


def keys_of(identities: Identities, secret: bytes) -> U64:
    """Their keys, uint64[k], ascending and distinct."""
    patients = {_key(secret, b"patient:" + name) & ~1 for name in identities.pseudonyms}
    images = {_key(secret, b"image:" + digest) | 1 for digest in identities.images}
    return np.array(sorted(patients | images), np.uint64)


def _key(secret: bytes, what: bytes) -> int:
    return int.from_bytes(hmac.digest(secret, what, "sha256")[:KEY_BYTES], "little")


class SetStore:
    """The folder of the sets of one site ledger. Content and name are checked against each other at every read."""

    def __init__(self, folder: Path, secret: bytes) -> None:
        self._folder, self._secret = folder, secret
        self._read: dict[str, U64] = {}

    def put(self, keys: U64) -> str:
        """Store a set, on disk when this returns; its digest.

        Raises:
            OSError: the disk is full or fails.
        """
        content = keys.astype("<u8").tobytes()
        digest = self._digest(content)
        if not (self._folder / digest).exists():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_whole(self._folder / digest, content)
        return digest

    def get(self, digest: str) -> U64:
        """Return the set of a digest, uint64[k].

        Raises:
            PrivacyError: it is missing or not what was stored.
        """
        if digest not in self._read:
            path = self._folder / digest
            try:
                content = path.read_bytes()
            except OSError as error:
                raise PrivacyError(
                    f"{path}: cannot be read ({error.strerror}); {REMEDY}", code="privacy.ledger-damaged"
                ) from None
            if self._digest(content) != digest:
                raise PrivacyError(f"{path}: was changed after it was written; {REMEDY}", code="privacy.ledger-damaged")
            self._read[digest] = np.frombuffer(content, "<u8").astype(np.uint64)
        return self._read[digest]

    def _digest(self, content: bytes) -> str:
        return hmac.new(self._secret, content, hashlib.sha256).hexdigest()[:DIGEST_DIGITS]


@dataclass(frozen=True)
class Memberships:
    """The units of several sets, grouped by the sets that hold them.

    Attributes:
        digests: of the sets, in the order of the columns.
        groups: bool[groups, sets]; each row differs from all others.
        patients: int64[groups]: how many patients are in each group.
        images: int64[groups]: how many images.
    """

    digests: tuple[str, ...]
    groups: NDArray[np.bool_]
    patients: NDArray[np.int64]
    images: NDArray[np.int64]

    @classmethod
    def of(cls, digests: Iterable[str], sets: Sequence[U64]) -> "Memberships":
        """Group all units of `sets`, whose digests are `digests`."""
        names = tuple(digests)
        keys, row = np.unique(np.concatenate([np.empty(0, np.uint64), *sets]), return_inverse=True)
        member = np.zeros((len(keys), len(names)), np.bool_)
        starts = np.cumsum([0, *map(len, sets)])
        for column, (first, last) in enumerate(pairwise(starts.tolist())):
            member[row[first:last], column] = True
        packed = np.packbits(member, axis=1) if names else np.zeros((len(keys), 1), np.uint8)
        rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).reshape(-1)
        _, first_row, group = np.unique(rows, return_index=True, return_inverse=True)
        groups = member[first_row]
        is_image = (keys & IMAGE_BIT) == IMAGE_BIT
        size = len(groups)
        patients = np.bincount(group[~is_image], minlength=size)
        images = np.bincount(group[is_image], minlength=size)
        return cls(names, groups, patients.astype(np.int64), images.astype(np.int64))
