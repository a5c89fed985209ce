"""Rank 0 believes no message: forged ones of each kind, as a hospital or a person in its place could send them."""

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.compression.update import ArraySpec, pack_arrays, unpack_arrays
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PayloadError
from fedhpc.records.metrics import BINS
from fedhpc.records.site_report import SiteReport
from fedhpc.run.evaluation.exact import read_counts, read_influence
from fedhpc.run.finished.final_models import read_model
from fedhpc.run.preflight.facts import RANK_FACTS, token_name
from fedhpc.run.preflight.facts import read_facts as read_rank_facts
from fedhpc.run.rounds.resume import FOUND, read_found
from fedhpc.run.start.site_facts import agreed_facts, check_agreed, read_facts
from fedhpc.transport.egress_log import KINDS, Kind
from fedhpc.transport.framing import check_announced
from fedhpc.transport.messages import of_each, parsed, said

SHAPE = (1, 3, BINS)
REPORT = {"site": "site3", "epsilon": 0.5, "evaluation_epsilon": None, "learner": "site3", "head": "0" * 16}
FACTS = {"site": "site3", "classes": ["a", "b"], "image_shape": [1, 8, 8], "weight": 5, "rank": 0, "host": "n1",
         "synthetic": False, "device": "cuda:0"}  # fmt: skip


def config() -> RunConfig:
    sites = [{"name": name, "weight": 5} for name in ("site1", "site2", "site3")]
    return RunConfig.model_validate({"name": "x", "data": {"shards": "{site}.h5", "sites": sites}})


def report(**changed: object) -> bytes:
    return json.dumps({**REPORT, **changed}).encode()


def test_an_honest_report_is_read() -> None:
    assert SiteReport.read("site3", report(), "site3").epsilon == 0.5


@pytest.mark.parametrize(
    "forged",
    [
        report(site="site1"),
        report(site="<b>site3</b>"),
        report(learner="site1"),
        report(head="<script>"),
        report(head=""),
        report(epsilon=-1.0),
        report(epsilon=None),
        report(epsilon="0.5"),
        report(more=1),
        report().replace(b"0.5", b"NaN"),
        report().replace(b"0.5", b"1e999"),
        b"[" * 100_000,
        b'"' + b"x" * 2**19 + b'"',
        b"",
        b"\xff\xfe",
    ],
)
def test_a_forged_report_is_refused_with_the_senders_name(forged: bytes) -> None:
    with pytest.raises(PayloadError, match="site site3") as refused:
        SiteReport.read("site3", forged, "site3")
    assert "<" not in str(refused.value), "nothing of a forged payload is repeated"
    assert len(str(refused.value)) < 500


def test_site3_cannot_sign_as_site1_or_send_more() -> None:
    """What it sends is judged by the session that it came through; a second row for another site is one too many."""
    with pytest.raises(PayloadError, match="speaks for itself"):
        SiteReport.read("site3", report(site="site1", learner="site1"), "site3")
    with pytest.raises(PayloadError, match="4 messages"):
        of_each([report()] * 4, ("site1", "site2", "site3"), "metrics", lambda site, payload: payload)


def packed(counts: np.ndarray, name: str = "counts") -> bytes:
    return pack_arrays({name: counts})


def honest() -> np.ndarray:
    counts = np.zeros(SHAPE, np.int64)
    counts[0, :, 7] = 2
    return counts


def test_an_honest_histogram_is_read() -> None:
    np.testing.assert_array_equal(read_counts("site2", packed(honest()), SHAPE), honest())


@pytest.mark.parametrize(
    "forge",
    [
        lambda: packed(-honest()),
        lambda: packed(honest()[:, :, :1]),
        lambda: packed(honest()[:, :2]),
        lambda: packed(np.zeros((2, 3, BINS), np.int64)),
        lambda: packed(honest().astype(np.float64)),
        lambda: packed(honest().astype(np.int32)),
        lambda: packed(honest().astype(">i8")),
        lambda: packed(honest() * 2**60),
        lambda: packed(honest(), "other"),
        lambda: pack_arrays({"counts": honest(), "site": np.array("site1")}),
        lambda: b"",
        lambda: b"PK\x03\x04" + bytes(100),
        lambda: packed(honest())[:-30],
        lambda: packed(honest()).replace(b"counts", b"../../c"[:6]),
    ],
)
def test_a_forged_histogram_is_refused(forge: Callable[[], bytes]) -> None:
    with pytest.raises(PayloadError, match="site site2"):
        read_counts("site2", forge(), SHAPE)


def test_tasks_with_other_numbers_of_images_are_refused() -> None:
    counts = np.zeros((2, 3, BINS), np.int64)
    counts[0, 0, 0] = 1
    with pytest.raises(PayloadError, match="numbers of images"):
        read_counts("site2", packed(counts), counts.shape)


def bomb(size: int, *, honest_directory: bool) -> bytes:
    """A .npy of `size` zero bytes in a zip: its directory says so, or says that it is small."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (size // 8,)})
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("counts.npy", "w") as file,
    ):
        file.write(header.getvalue())
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
    payload = out.getvalue()
    if honest_directory:
        return payload
    at = payload.rindex(b"PK\x01\x02")
    return payload[: at + 24] + (3 * BINS * 8 + 128).to_bytes(4, "little") + payload[at + 28 :]


@pytest.mark.parametrize("honest_directory", [True, False])
@pytest.mark.parametrize("expected", [True, False])
def test_a_small_report_that_inflates_is_refused_before_memory_is_taken(honest_directory: bool, expected: bool) -> None:
    """64 MB of zeros in 64 kB (as 762 MB in 760 kB were): at no time more than 4 MB are held."""
    payload = bomb(2**26, honest_directory=honest_directory)
    assert len(payload) < 2**17
    layout = {"counts": ArraySpec("<i8", SHAPE)} if expected else None
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError):
            unpack_arrays(payload, layout, 2**20)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_header_that_claims_terabytes_is_refused() -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (2**40,)})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("counts.npy", header.getvalue())
    with pytest.raises(PayloadError):
        unpack_arrays(out.getvalue())


@given(st.binary(max_size=400), st.integers(0, 300))
def test_damaged_arrays_are_read_or_refused_and_nothing_else(block: bytes, at: int) -> None:
    payload = bytearray(pack_arrays({"counts": np.arange(20)}))
    payload[at : at + len(block)] = block
    for one in (bytes(payload), block):
        try:
            read = unpack_arrays(one, {"counts": ArraySpec("<i8", (20,))}, 160)
        except PayloadError:
            continue
        assert {name: (array.dtype.str, array.shape) for name, array in read.items()} == {"counts": ("<i8", (20,))}


@pytest.mark.parametrize("forged", [b"", bytes(7), bytes(16), np.float64(np.nan).tobytes(), np.float64(-1).tobytes(),
                                    np.float64(np.inf).tobytes(), np.float64(1e300).tobytes()])  # fmt: skip
def test_a_forged_part_of_the_variance_is_refused(forged: bytes) -> None:
    with pytest.raises(PayloadError, match="site site1"):
        read_influence("site1", forged)
    assert read_influence("site1", np.float64(0.25).tobytes()) == 0.25


def test_a_forged_model_of_a_baseline_is_refused() -> None:
    good = np.ones(4, np.float32)
    assert read_model("site1", pack_arrays({"site1": good}), 4)["site1"].tolist() == [1, 1, 1, 1]
    for name, params in (("site2", good), ("site1", good[:3]), ("site1", good * np.inf), ("site1", good.astype(float))):
        with pytest.raises(PayloadError, match="site site1"):
            read_model("site1", pack_arrays({name: params}), 4)


def test_hello_is_believed_of_the_site_itself_only() -> None:
    others = [json.dumps({**FACTS, "site": name}).encode() for name in ("site1", "site2")]
    assert [one["site"] for one in read_facts(config(), 1, [*others, json.dumps(FACTS).encode()])] == list(
        config().site_names
    )
    for changed in (
        {"site": "site1"}, {"rank": 1}, {"weight": 10**9}, {"weight": -1}, {"host": "<img src=x>"}, {"device": "a b"},
        {"classes": []}, {"classes": ["a"] * 5000}, {"image_shape": [0, 8, 8]}, {"image_shape": [1, 8]},
    ):  # fmt: skip
        forged = json.dumps({**FACTS, **changed}).encode()
        with pytest.raises(PayloadError, match="site site3, hello"):
            read_facts(config(), 1, [*others, forged])


def test_preflight_and_resume_messages_are_checked() -> None:
    with pytest.raises(PayloadError, match="rank 1, control"):
        parsed(b'{"rounds": {"site2": [-1]}, "damaged": [], "foreign": []}', FOUND, "rank 1, control")
    with pytest.raises(PayloadError, match="rank 1, control"):
        parsed(
            b'{"rounds": {"site2": [1]}, "damaged": ["' + b"x" * 3000 + b'"], "foreign": []}', FOUND, "rank 1, control"
        )
    theirs = b'{"rounds": {"site1": [1]}, "damaged": [], "foreign": []}'
    assert read_found(config(), 4, 0, theirs)["rounds"] == {"site1": [1]}
    with pytest.raises(PayloadError, match="rank 1, control: it speaks for sites that it does not play"):
        read_found(config(), 4, 1, theirs)
    assert parsed(b'{"rounds": {}, "damaged": [], "foreign": []}', FOUND, "rank 1, control")["rounds"] == {}
    facts = {"rank": 1, "local_rank": 0, "host": "h", "tasks": 0, "shards": {"site1": ["p", ""]}, "device": "cpu",
             "gpu": "", "given": "", "launcher": "", "mpi": "", "versions": {}, "run_dir": "", "free_bytes": 1,
             "clock_s": 1.0}  # fmt: skip
    good = json.dumps({**facts, "rank": 0, "shards": {name: ["p", ""] for name in config().site_names}}).encode()
    assert RANK_FACTS.validate_json(good) == read_rank_facts(config(), 1, 0, good)
    for forged in (
        json.dumps(facts).encode(),
        good.replace(b'"rank": 0', b'"rank": 1'),
        good.replace(b"site3", b"site9"),
    ):
        with pytest.raises(PayloadError, match="rank 0, control"):
            read_rank_facts(config(), 1, 0, forged)


@pytest.mark.parametrize("kind", KINDS)
def test_no_memory_is_taken_for_what_rank_0_announces(kind: Kind) -> None:
    """Rank 0 could make every hospital's node run out of memory by a size alone, before a byte of it came."""
    check_announced(2**20, kind)
    for size_bytes in (2**40, 2**62, -1, *([] if kind == "update" else [2**29])):
        with pytest.raises(PayloadError, match=f"aggregator, {kind}: it announces"):
            check_announced(size_bytes, kind)


def test_a_text_from_another_rank_cannot_move_the_terminal() -> None:
    assert said(b"lost\x1b[2J\r\x07 disk\n") == "lost?[2J?? disk\n"
    assert len(said(bytes(10**6))) <= 2**16


@pytest.mark.parametrize("told", [b"ledger.jsonl", b"../x", b"/etc/passwd", b"", b".preflight-0123456789abcdef/x"])
def test_a_site_makes_and_removes_no_file_of_another_name_for_rank_0(told: bytes) -> None:
    """A file of that name in the site's own folder would be emptied and removed: its ledger, its log of what left."""
    with pytest.raises(PayloadError, match="names no token"):
        token_name(told)
    assert token_name(b".preflight-0123456789abcdef") == ".preflight-0123456789abcdef"


@pytest.mark.parametrize(("key", "told"), [("classes", ["a"]), ("image_shape", [1, 8, 9])])
def test_a_site_refuses_a_task_that_is_not_its_shards(key: str, told: list[object]) -> None:
    """With a class fewer, whether training fails at a site would tell whether it has a patient of the last one."""
    own = [{"site": "site3", "classes": ("a", "b"), "image_shape": (1, 8, 8), "synthetic": True}]
    honest = {"classes": ["a", "b"], "image_shape": [1, 8, 8], "synthetic": False}
    check_agreed(honest, own)
    with pytest.raises(InputError, match=f"site site3: the aggregator's {key}"):
        check_agreed({**honest, key: told}, own)


def test_a_site_refuses_that_its_patients_are_called_synthetic() -> None:
    """Every rank keeps that with the models that it writes: nothing protects those of patients who do not exist."""
    real = {"site": "site3", "classes": ("a", "b"), "image_shape": (1, 8, 8), "synthetic": False, "weight": 9}
    phantom = {**real, "site": "site1", "synthetic": True}
    agreed = agreed_facts([phantom, real])
    check_agreed(agreed, [phantom])
    check_agreed(agreed_facts([phantom, phantom]), [phantom])
    assert (agreed["synthetic"], agreed_facts([phantom, phantom])["synthetic"]) == (False, True)
    with pytest.raises(InputError, match="site site3: the aggregator says that all patients are synthetic"):
        check_agreed({**agreed, "synthetic": True}, [real])
