"""Coverage-guided fuzzing of `decode`: an input is refused by name, or is an update that can be folded; nothing else.

Not a part of the test suite: atheris (libFuzzer for Python) is not among the dependencies. Ten minutes of it, from
the top of the checkout:

    pip install atheris
    python -m tests.fuzz.fuzz_codec -max_total_time=600 -rss_limit_mb=256 -print_final_stats=1 CORPUS_DIR

An input's first byte says how the rest becomes a payload, so that the fuzzer reaches every check and not the checksum
alone: as it is; under the right checksum; or as a header and planes that are drawn from it, deflated or not, under the
right lengths and the right checksum. CORPUS_DIR, a folder, is given a payload of each kind to begin with.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fedhpc.compression"]):
    import numpy as np

    from fedhpc.compression.byte_planes import deflated
    from fedhpc.compression.codec import CRC, Header
    from fedhpc.errors import PayloadError
    from tests.support.payloads import ROUND, SENDER, SIZE, assembled, check_decoded, payloads, sealed

AS_IT_IS, UNDER_CHECKSUM, DRAWN = range(3)


def payload_of(data: bytes) -> bytes:
    """The payload that an input stands for."""
    how = data[0] % 3 if data else AS_IT_IS
    if how == DRAWN:
        return drawn(atheris.FuzzedDataProvider(data[1:]))
    return sealed(data[1:]) if how == UNDER_CHECKSUM else data[1:]


def drawn(source: atheris.FuzzedDataProvider) -> bytes:
    """A payload whose header and planes come from the input; its lengths and checksum are right."""
    kind, index_planes, level_planes = (source.ConsumeIntInRange(0, most) for most in (3, 5, 5))
    k = source.PickValueInList([0, 1, 9, 100, SIZE - 1, SIZE, source.ConsumeInt(8) % 2**64])
    lowest, step = source.ConsumeInt(4) % 2**32, source.ConsumeInt(4) % 2**32
    header = Header(SENDER, ROUND, SIZE, k, kind, index_planes, level_planes, lowest, step)
    return assembled(header, [plane(source, k) for _ in range(index_planes + 1 + level_planes)])


def plane(source: atheris.FuzzedDataProvider, k: int) -> bytes:
    """A plane as it is, or one of a length that some block should have, deflated."""
    if source.ConsumeBool():
        return source.ConsumeBytes(source.ConsumeIntInRange(0, 64))
    size = source.PickValueInList([min(k, SIZE), (min(k, SIZE) + 7) // 8, (SIZE + 7) // 8])
    content = np.frombuffer(source.ConsumeBytes(size), np.uint8)
    return deflated(np.concatenate([content, np.full(size - content.size, source.ConsumeIntInRange(0, 255), np.uint8)]))


def test_one_input(data: bytes) -> None:
    """What libFuzzer calls; any other exception is a finding."""
    try:
        check_decoded(payload_of(data))
    except PayloadError as error:
        assert f"sender {SENDER} in round {ROUND + 1}" in str(error)


def write_corpus(folder: Path) -> None:
    """The payloads of the tests, as inputs of the two kinds that are bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, payload in enumerate(payloads()):
        (folder / f"as-it-is-{number}").write_bytes(bytes([AS_IT_IS]) + payload)
        (folder / f"under-checksum-{number}").write_bytes(bytes([UNDER_CHECKSUM]) + payload[: -CRC.size])


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if not argument.startswith("-"):
            write_corpus(Path(argument))
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
