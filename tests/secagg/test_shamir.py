"""Secret sharing: enough shares give the secret; fewer are distributed alike for every secret, by full enumeration."""

from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.secagg.shamir import PRIME, SECRET_BYTES, SHARE_BYTES, combine, evaluate, split

secrets = st.one_of(st.binary(min_size=32, max_size=32), st.sampled_from([bytes(32), b"\xff" * 32]))


@given(secrets, st.integers(1, 8), st.data())
def test_any_threshold_shares_give_the_secret(secret: bytes, count: int, data: st.DataObject) -> None:
    points = data.draw(st.lists(st.integers(1, 1000), min_size=count, max_size=count, unique=True))
    threshold = data.draw(st.integers(1, count))
    shares = split(secret, points, threshold)
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}
    enough = data.draw(st.lists(st.sampled_from(points), min_size=threshold, unique=True))
    assert combine({x: shares[x] for x in enough}) == secret


@pytest.mark.parametrize("threshold", [2, 3])
def test_fewer_shares_have_the_same_distribution_for_every_secret(threshold: int) -> None:
    """Over the field of 7 elements, every polynomial: threshold - 1 shares take each value equally often, always."""
    prime = 7
    for points in combinations(range(1, prime), threshold - 1):
        for secret in range(prime):
            seen = Counter(
                tuple(evaluate((secret, *rest), x, prime) for x in points)
                for rest in product(range(prime), repeat=threshold - 1)
            )
            assert set(seen.values()) == {1}
            assert len(seen) == prime ** (threshold - 1)


@given(secrets, secrets)
def test_shares_below_the_threshold_fit_any_other_secret(secret: bytes, other: bytes) -> None:
    """In the real field: for two of three needed shares there is a third one that makes the secret any other."""
    shares = {x: int.from_bytes(share, "little") for x, share in split(secret, [1, 2, 3], 3).items()}
    wanted = int.from_bytes(other, "little")
    # Lagrange at 0 with the points 1, 2, 3 has the coefficients 3, -3, 1.
    third = (wanted - 3 * shares[1] + 3 * shares[2]) % PRIME
    forged = {1: shares[1], 2: shares[2], 3: third}
    assert combine({x: share.to_bytes(SHARE_BYTES, "little") for x, share in forged.items()}) == other


def test_shares_are_drawn_anew() -> None:
    assert split(bytes(32), [1, 2], 2) != split(bytes(32), [1, 2], 2)


def test_prime_is_the_next_one_above_every_secret() -> None:
    def is_prime(n: int) -> bool:
        """Miller and Rabin with forty bases."""
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        return all(
            (power := pow(base, odd, n)) in (1, n - 1) or any(pow(power, 2**k, n) == n - 1 for k in range(1, twos))
            for base in range(2, 42)
        )

    above = 2 ** (8 * SECRET_BYTES)
    assert [n for n in range(above + 1, PRIME + 1, 2) if is_prime(n)] == [PRIME]


def test_shares_of_two_secrets_are_told_apart_when_they_overflow() -> None:
    top = {1: (PRIME - 1).to_bytes(SHARE_BYTES, "little")}
    with pytest.raises(ValueError, match="not of one secret"):
        combine(top)


@pytest.mark.parametrize(
    ("secret", "points", "threshold"),
    [(bytes(31), [1, 2], 2), (bytes(32), [0, 1], 2), (bytes(32), [1, 1], 1), (bytes(32), [1], 2), (bytes(32), [1], 0)],
)
def test_bad_arguments(secret: bytes, points: list[int], threshold: int) -> None:
    with pytest.raises(ValueError, match=r"allowed|needs"):
        split(secret, points, threshold)
