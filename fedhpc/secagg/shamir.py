"""Secret sharing (Shamir 1979, "How to Share a Secret"): any `threshold` shares give the secret, fewer give nothing.

A secret of 32 bytes is the value at 0 of a polynomial of degree threshold - 1 over the field of PRIME elements, whose
other coefficients are uniform; the share of point x is its value at x. With fewer shares every secret is explained by
the same number of polynomials, so they say nothing about it, whatever the reader can compute.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence

PRIME = 2**256 + 297
"""The smallest prime above every secret of 32 bytes."""
SECRET_BYTES, SHARE_BYTES = 32, 33


def split(secret: bytes, points: Collection[int], threshold: int) -> dict[int, bytes]:
    """One share of SHARE_BYTES for each of the `points`.

    Args:
        secret: SECRET_BYTES bytes (private).
        points: different integers in [1, PRIME), at least `threshold` of them.
        threshold: how many shares give the secret back; at least 1.

    >>> shares = split(bytes(range(32)), [1, 2, 5], threshold=2)
    >>> combine({1: shares[1], 5: shares[5]}) == bytes(range(32))
    True
    """
    different = set(points)
    if len(secret) != SECRET_BYTES or not all(0 < x < PRIME for x in points) or len(different) != len(points):
        raise ValueError(f"{len(secret)} bytes at points {sorted(points)}: needs {SECRET_BYTES} bytes, points above 0")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold={threshold} of {len(points)} shares; allowed: 1 to {len(points)}")
    coefficients = [int.from_bytes(secret, "little"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {x: evaluate(coefficients, x, PRIME).to_bytes(SHARE_BYTES, "little") for x in points}


def evaluate(coefficients: Sequence[int], x: int, prime: int) -> int:
    """The polynomial sum_k coefficients[k] x^k modulo `prime`."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % prime
    return value


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret behind {point: share}, by Lagrange interpolation at 0: SECRET_BYTES bytes.

    Raises:
        ValueError: where the shares are not of one secret. Fewer than the threshold give another secret, or this error.
    """
    total = 0
    for x, share in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        total += int.from_bytes(share, "little") * above * pow(below, -1, PRIME)
    value = total % PRIME
    if value >= 2 ** (8 * SECRET_BYTES):
        raise ValueError(f"shares of points {sorted(shares)} are not of one secret of {SECRET_BYTES} bytes")
    return value.to_bytes(SECRET_BYTES, "little")
