"""The keystream and the Gaussian noise made of it: exact to the last integer, and of the right distribution."""

import ast
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from mpmath import mp, mpf
from scipy import stats

from fedhpc.privacy import gaussian, noise
from fedhpc.privacy.gaussian import Noise, grid_of, released
from fedhpc.privacy.keystream_ahead import KeystreamAhead
from fedhpc.privacy.noise import KeyStream, gaussian_integers, source, tolerance
from tests.support.devices import DEVICES

FALSE_ALARM = 1e-7
PACKAGE = Path(noise.__file__).parents[1]
RESTS_ON = (
    *sorted((PACKAGE / "privacy").glob("*.py")),
    *(PACKAGE / "site" / "training" / f"{name}.py" for name in ("dp_sgd", "secure_contribution")),
    *(PACKAGE / "site" / "per_example" / f"{name}.py" for name in ("clipped_sum", "linear_head", "unit_order")),
    *sorted((PACKAGE / "secagg").glob("[!_]*.py")),
)
NOT_FOR_NOISE = {"Generator", "RandomState", "bernoulli", "default_rng", "manual_seed", "multinomial", "normal_"}
NOT_FOR_NOISE |= {"normal", "rand", "randint", "randn", "random", "randperm", "uniform_", "generator", "seed_of"}


def drawn(std: float, size: int, seed: int, value: float = 0.0, largest: float = 0.0) -> torch.Tensor:
    """What is released of a vector of equal entries."""
    total = torch.full((size,), value, dtype=torch.float64)
    return released(total, Noise(std, max(largest, abs(value)), KeyStream.of_seed(seed)))


def test_keystream_is_aes_in_counter_mode() -> None:
    key = bytes(range(32))
    blocks = b"".join(number.to_bytes(16, "big") for number in range(20_000))
    expected = Cipher(AES(key), ECB()).encryptor().update(blocks)
    stream = KeyStream(key)
    assert stream.bytes(3) + stream.bytes(300_000) + stream.bytes(5) == expected[:300_008]


def test_words_and_uniforms_are_the_streams_bytes() -> None:
    words = KeyStream.of_seed(1).words(1000)
    assert words.tobytes() == KeyStream.of_seed(1).bytes(8000)
    uniform = KeyStream.of_seed(1).uniform(1000)
    np.testing.assert_array_equal(uniform, (words >> np.uint64(11)) / 2**53)
    assert stats.kstest(KeyStream.of_seed(2).uniform(100_000), "uniform").pvalue > FALSE_ALARM


@pytest.mark.parametrize("bit", [0, 31, 32, 63, 64, 200])
def test_every_bit_of_a_seed_matters(bit: int) -> None:
    assert KeyStream.of_seed(5).bytes(32) != KeyStream.of_seed(5 ^ 1 << bit).bytes(32)


def test_sources_differ_by_place_and_start() -> None:
    places = [(3, "a", 0, "noise"), (3, "a", 0, "sampling"), (3, "a", 1, "noise"), (3, "b", 0, "noise")]
    fresh = [source(None, "a", 0, "noise").bytes(32) for _ in range(3)]
    assert len({source(*place).bytes(32) for place in places} | set(fresh)) == 7
    assert source(*places[0]).bytes(32) == source(*places[0]).bytes(32)


def test_chosen_subsets_are_uniform() -> None:
    stream = KeyStream.of_seed(0)
    subsets = [tuple(stream.chosen(5, 3)) for _ in range(5_000)]
    assert all(list(subset) == sorted(set(subset)) for subset in subsets)
    _, counts = np.unique(subsets, axis=0, return_counts=True)
    assert (len(counts), stats.chisquare(counts).pvalue > FALSE_ALARM) == (10, True)


@pytest.mark.parametrize("size", [1, 2, 7, gaussian.CHUNK, gaussian.CHUNK + 1, 3 * gaussian.CHUNK + 5])
def test_numpy_torch_and_any_threads_give_the_same_integers(size: int) -> None:
    std = 1.4 * 2.0**16
    expected = gaussian_integers(std, size, KeyStream.of_seed(size))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            np.testing.assert_array_equal(drawn(std, size, size).numpy(), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [0.0, 0.3, -1e5 / 3, 1e7 / 7])
def test_every_integer_is_that_of_256_bits(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """All draws are taken for doubtful, so that each is computed again."""
    std = 1.7 * 2.0**16
    quick, quick_numpy = drawn(std, 501, 0, value), gaussian_integers(std, 501, KeyStream.of_seed(0))
    monkeypatch.setattr(gaussian, "tolerance", lambda *_: 1.0)
    monkeypatch.setattr(noise, "tolerance", lambda *_: 1.0)
    assert torch.equal(quick, drawn(std, 501, 0, value))
    if value == 0:
        np.testing.assert_array_equal(quick_numpy, gaussian_integers(std, 501, KeyStream.of_seed(0)))


class Chosen(KeyStream):
    """A stream of words that a test has chosen, and of 0 for all further bits."""

    def __init__(self, radius: int, angle: int) -> None:
        super().__init__(bytes(32))
        self.chosen_words = np.array([radius, angle], np.int64)

    def fill(self, out: np.ndarray) -> None:
        out[:] = self.chosen_words.view(np.uint8)

    def more_bits(self, pair: int) -> tuple[int, int]:
        return 0, 0


def exact_pair(radius: int, angle: int) -> Iterator[mpf]:
    u1, u2 = ((mpf(word << 128) + 0.5) / mpf(2) ** 191 for word in (radius, angle))
    for turn in (mp.cos, mp.sin):
        yield mp.sqrt(-2 * mp.log(abs(u1))) * turn(mp.pi * u2)


def words() -> Iterator[tuple[int, int]]:
    """The edges of what float64 can tell, on both sides of them, and some from the middle."""
    middle = KeyStream.of_seed(4).words(60).view(np.int64).tolist()
    edges = [2**63 - 1, -(2**63), 0, 1, -1, 2**39, 2**40, -(2**39), 2**63 - 2**41, 2**63 - 2**40, 2**63 - 2**42, 2**62]
    yield from zip(middle[:30], middle[30:], strict=True)
    yield from ((radius, angle) for radius in edges for angle in (0, 1, 2**61, 2**62, -(2**62), -(2**63), middle[0]))


@pytest.mark.parametrize("distance", [0.0, 1e-25, 0.5, 1.01, 2.0], ids="{} tolerances".format)
def test_rounding_is_exact_beside_half_integers(distance: float) -> None:
    """For each word the value is chosen so that value + noise lies that near to a half-integer, on either side."""
    std = 1.99 * 2.0**16
    with mp.workprec(400):
        for radius, angle in words():
            for sign in (1, -1):
                noises = [mpf(std) * z for z in exact_pair(radius, angle)]
                near = mpf(sign * distance * tolerance(std, 100.0))
                value = [float(mp.nint(n) - n + 0.5 + near) for n in noises]
                sums = [mpf(v) + n for v, n in zip(value, noises, strict=True)]
                total = torch.tensor(value, dtype=torch.float64)
                got = released(total, Noise(std, 100.0, Chosen(radius, angle))).tolist()
                # What 191 bits of a uniform cannot decide either is chosen here, and never comes by chance.
                undecided = [abs(x - mp.floor(x) - 0.5) < mpf(2) ** -100 for x in sums]
                wrong = [g != mp.nint(x) and not u for g, x, u in zip(got, sums, undecided, strict=True)]
                assert not any(wrong), (radius, angle)


def test_numpy_computes_any_word_as_torch_does() -> None:
    """Also a word of 0, whose logarithm is none: once in 2^64 draws."""
    std = 1.99 * 2.0**16
    for radius, angle in words():
        expected = released(torch.zeros(2), Noise(std, 0.0, Chosen(radius, angle)))
        assert gaussian_integers(std, 2, Chosen(radius, angle)).tolist() == expected.tolist(), (radius, angle)


def test_float64_is_doubted_rarely() -> None:
    """What is computed again costs a tenth of a millisecond, so it must be one draw in millions."""
    assert 2 * tolerance(2.0**17, 2.0**24) < 2.0**-20


@pytest.mark.parametrize("std", [20.0, 2.0**16, 3e6])
def test_noise_is_gaussian(std: float) -> None:
    """Moments, 64 bins of equal probability, tails, low bits, and neighbours that know nothing of one another."""
    n = 600_000
    k = gaussian_integers(std, n, KeyStream.of_seed(int(std)))
    z = k / std
    limit = stats.norm.isf(FALSE_ALARM)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - mean) < limit * math.sqrt(variance / n) + std**-2
    ends = np.unique(np.rint(stats.norm.ppf(np.arange(1, 64) / 64) * std) + 0.5)
    shares = np.diff(np.concatenate([[0], stats.norm.cdf(ends / std), [1]]))
    assert (
        stats.chisquare(np.bincount(np.searchsorted(ends, k), minlength=len(shares)), n * shares).pvalue > FALSE_ALARM
    )
    for tail in (3.0, 4.0, 4.6):
        expected = 2 * n * stats.norm.sf((math.floor(tail * std) + 0.5) / std)
        seen = int((np.abs(k) > math.floor(tail * std)).sum())
        assert stats.poisson.cdf(seen, expected) > FALSE_ALARM < stats.poisson.sf(seen - 1, expected)
    if std > 1000:
        assert stats.chisquare(np.bincount(k & 15)).pvalue > FALSE_ALARM
    half = noise.CHUNK_PAIRS
    for lag in (1, 2, half - 1, half, half + 1, 2 * half):
        for values in (z, z**2, np.abs(z)):
            centred = (values - values.mean()) / values.std()
            assert abs((centred[:-lag] * centred[lag:]).mean()) < limit / math.sqrt(n - lag)


@pytest.mark.parametrize("wrong", [0.99, 1.01])
def test_wrong_noise_would_be_noticed(wrong: float) -> None:
    """The control: the bins of the test above see one per cent."""
    n, std = 600_000, 2.0**16
    k = gaussian_integers(wrong * std, n, KeyStream.of_seed(1))
    ends = stats.norm.ppf(np.arange(1, 64) / 64) * std
    assert stats.chisquare(np.bincount(np.searchsorted(ends, k), minlength=64)).pvalue < FALSE_ALARM


@pytest.mark.parametrize("std", [1.0, 2.0**-31, 7e9])
def test_release_is_on_the_grid_of_its_noise(std: float) -> None:
    values = released(torch.linspace(-std, std, 999, dtype=torch.float64), Noise(std, std, KeyStream.of_seed(0)))
    units = (values / grid_of(std)).numpy()
    np.testing.assert_array_equal(units, np.rint(units))
    assert 2.0**16 <= std / grid_of(std) < 2.0**17
    assert values.std() == pytest.approx(std * math.sqrt(4 / 3), rel=0.2)


@pytest.mark.parametrize("std", [0.0, 15.0, 2.0**25, math.nan])
def test_std_out_of_range_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        gaussian_integers(std, 3, KeyStream.of_seed(0))


def test_float32_in_place_is_released_as_float64_is() -> None:
    total = 10 * torch.linspace(-1, 1, gaussian.CHUNK + 3)
    expected = released(total.double(), Noise(1.0, 10.0, KeyStream.of_seed(0)), 7.0).float()
    torch.testing.assert_close(released(total, Noise(1.0, 10.0, KeyStream.of_seed(0)), 7.0, total), expected)


@pytest.mark.parametrize("total", [torch.zeros(3, dtype=torch.bfloat16), torch.zeros(6)[::2]])
def test_other_vectors_are_refused(total: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous floats"):
        released(total, Noise(1.0, 1.0, KeyStream.fresh()))


def test_sum_too_large_for_exact_rounding_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot round"):
        released(torch.zeros(3), Noise(1.0, 2.0**40, KeyStream.fresh()))


@pytest.mark.parametrize("where", DEVICES[1:])
def test_gpu_gives_the_integers_of_the_cpu(where: str) -> None:
    total = 1e3 * torch.linspace(-1, 1, 5 * gaussian.CHUNK + 3, dtype=torch.float64)
    on_gpu = released(total.to(where), Noise(1.0, 1e3, KeyStream.of_seed(0))).cpu()
    assert torch.equal(released(total, Noise(1.0, 1e3, KeyStream.of_seed(0))), on_gpu)


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("size", [2 * gaussian.CHUNK + 3, 7])
def test_keystream_read_ahead_gives_the_same_releases(where: str, size: int) -> None:
    total = torch.linspace(-1, 1, size, device=where)
    stream, ahead = KeyStream.of_seed(0), KeystreamAhead(KeyStream.of_seed(0), size, pinned=where == "cuda")
    for _ in range(3):
        expected = released(total, Noise(1.0, 1.0, stream))
        # A stream that was read ahead gives nothing more: the releases are of the bytes that were read.
        assert torch.equal(released(total, Noise(1.0, 1.0, KeyStream.of_seed(1), ahead.bytes())), expected)
        ahead.begin()
    ahead.close()


@pytest.mark.parametrize("path", RESTS_ON, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_other_generator_where_privacy_rests(path: Path) -> None:
    """No torch or numpy generator, nor `fedhpc.util.rng`, whose seeds are public."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (*(alias.name for alias in node.names), getattr(node, "module", None) or "")
    }
    assert not used & NOT_FOR_NOISE
    assert not {name for name in imported if name == "random" or name in NOT_FOR_NOISE or "rng" in name.split(".")}
