"""The secure channel on real MPI: who is admitted, what passes, and what can be read on the wire."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedhpc.cli.main import main
from fedhpc.report.egress import report
from fedhpc.transport import pki
from fedhpc.transport.egress_log import read_log
from tests.conftest import Mpi, missing, run_limited
from tests.mpi.channel_cases import known_image, known_update
from tests.mpi.test_federated import make_shard, params

pytestmark = pytest.mark.mpi
SITES = ("site1", "site2", "site3", "site4")
ROUNDS = 3
Run = Callable[..., tuple[int, str, str]]
Told = list[dict[str, dict[str, Any]]]
CASES = ("-m", "tests.mpi.channel_cases")


class Earlier(datetime):
    """A clock of three days ago."""

    @classmethod
    def now(cls, tz: object = None) -> "Earlier":
        return datetime.now(UTC) - timedelta(days=3)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small shards, their certificates and a config in one folder."""
    folder = tmp_path_factory.mktemp("hospitals")
    pki.init(folder / "pki", SITES)
    for site in SITES:
        make_shard(folder, site, 40)
    tree = {
        "name": "door",
        "data": {"shards": str(folder / "{site}.h5"), "sites": [{"name": name} for name in SITES]},
        "training": {"rounds": ROUNDS, "local_epochs": 1, "batch_size": 16},
        "privacy": "off",
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    (folder / "door.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


def swapped(pems: Path, folder: Path, name: str) -> None:
    """site3's certificate and key become those of `name` in another folder."""
    for end in (".pem", ".key"):
        shutil.copy(pems / f"{name}{end}", folder / f"site3{end}")


def of_another_ca(folder: Path) -> None:
    pki.init(folder.parent / "elsewhere", SITES)
    swapped(folder.parent / "elsewhere", folder, "site3")


def expired(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pki, "datetime", Earlier)
        pki.issue(folder, "site3", days=2)


# What is not as it must be with site3, which is at rank 1: (what is done to a copy of the certificates, what is said).
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "wrong CA": (of_another_ca, "site site3: TLS with site3 refused: (unable to get local issuer|self-signed) certif"),
    "wrong site": (
        lambda folder: swapped(folder, folder, "site4"),
        "site site3: TLS with site3 refused: the certificate shown is that of site4",
    ),
    "the aggregator's": (
        lambda folder: swapped(folder, folder, "aggregator"),
        "site site3: TLS with site3 refused: unsuitable certificate purpose",
    ),
    "revoked": (lambda folder: pki.revoke(folder, "site3"), "site site3: TLS with site3 refused: certificate revoked"),
    "expired": (expired, r"site3: .*site3\.pem expired on 20"),
    "readable": (
        lambda folder: (folder / "site3.key").chmod(0o644),
        r"site3: .*site3\.key has mode 0644: others can read the key",
    ),
    "missing": (
        lambda folder: (folder / "site3.pem").unlink(),
        r"site3: exchange\.tls is on and .*site3\.pem is missing",
    ),
}
TLS_1_2 = "site site3: TLS with site3 refused: .*protocol"
UP = {
    "flip": "site4: its update message was changed, moved or sent again",
    "replay": "site3: its update message was changed, moved or sent again",
    "swap": "site3: its update message was changed, moved or sent again",
    "drop": "site site4: its update message did not come",
    "more": "2 update messages were expected, and more came",
    "cut": "site4: its update message is cut",
}
DOWN = {
    "flip": "site site3, site4: the aggregator's update message was changed on the way",
    "replay": "site site3, site4: aggregator: its update message was changed, moved or sent again",
    "cut": "site site3, site4: the aggregator's update message was changed on the way",
}


@pytest.fixture(scope="module")
def told(hospitals: Path, mpirun: Run) -> Told:
    """What each of two ranks says of every case, all of them in one start of MPI."""
    cases: dict[str, object] = {"good": {}}
    for number, (kind, (spoil, _)) in enumerate(REFUSED.items()):
        folder = shutil.copytree(hospitals / "pki", hospitals / f"pki{number}")
        spoil(folder)
        cases[kind] = {"set": {"exchange.pki": str(folder)}}
    cases |= {"TLS 1.2": {"old": True}, "good again": {}}
    grown = shutil.copytree(hospitals / "pki", hospitals / "pki-grown")
    for path in (grown / "site4.pem", grown / "site4.key"):
        path.unlink()
    for name, folder in (("demo", hospitals / "pki-demo"), ("demo, one site more", grown)):
        cases[name] = {"set": {"exchange.pki": str(folder), "data.phantom": "{}"}}
    cases["no demo"] = {"set": {"exchange.pki": str(hospitals / "pki-none")}}
    cases |= {f"up {change}": {"up": change} for change in UP}
    cases |= {f"down {change}": {"down": change} for change in DOWN}
    (hospitals / "cases.json").write_text(json.dumps(cases))
    (hospitals / "cases").mkdir()
    status, _, err = mpirun(2, [*CASES, hospitals / "door.yaml", hospitals / "cases.json", hospitals / "cases"])
    assert status == 0, err
    return [json.loads((hospitals / "cases" / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["good", "good again", "demo", "demo, one site more"])
def test_all_gets_through_where_all_is_right(told: Told, name: str) -> None:
    lengths = [len(known_update(number)) for number in range(4)]
    assert told[0][name] == {"came": [[lengths, True]] * 2, "right": True}
    assert told[1][name] == {"came": [[[], True]] * 2, "right": True}


def test_certificates_are_made_on_first_use_for_the_built_in_cohort_alone(hospitals: Path, told: Told) -> None:
    assert stat.S_IMODE((hospitals / "pki-demo" / "site1.key").stat().st_mode) == 0o600
    assert (hospitals / "pki-grown" / "ca.pem").read_bytes() == (hospitals / "pki" / "ca.pem").read_bytes()
    assert not (hospitals / "pki-none").exists()
    assert told[0]["no demo"] == told[1]["no demo"]
    assert "from where `python run.py pki init CONFIG` made them" in told[0]["no demo"]["refused"]


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_at_every_rank_with_the_site_named(told: Told, kind: str) -> None:
    assert told[0][kind] == told[1][kind]
    assert re.search(REFUSED[kind][1], told[0][kind]["refused"]), told[0][kind]


def test_an_old_peer_is_refused(told: Told) -> None:
    assert told[0]["TLS 1.2"] == told[1]["TLS 1.2"]
    assert re.search(TLS_1_2, told[0]["TLS 1.2"]["refused"]), told[0]["TLS 1.2"]


@pytest.mark.parametrize("change", UP)
def test_what_is_changed_on_the_way_up_is_refused(told: Told, change: str) -> None:
    assert re.search(UP[change], told[0][f"up {change}"]["up"])
    assert "down" not in told[1][f"up {change}"]


@pytest.mark.parametrize("change", DOWN)
def test_what_is_changed_on_the_way_down_is_refused(told: Told, change: str) -> None:
    assert re.search(DOWN[change], told[1][f"down {change}"]["down"])
    assert "up" not in told[0][f"down {change}"]


def pieces_found(payload: bytes, capture: bytes) -> float:
    """The share of the payload's 64-byte pieces that are in the capture as they are."""
    pieces = [payload[at : at + 64] for at in range(0, len(payload) - 63, 64)]
    return sum(piece in capture for piece in pieces) / len(pieces)


def tapped(mpi: Mpi, folder: Path, case: dict[str, object], config: Path) -> bytes:
    """All bytes that went over TCP between two ranks while `case` ran."""
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps({"only": case}))
    program = mpi.command(2, [*CASES, config, folder / "cases.json", folder])
    over_tcp = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "tcp,self", "OMPI_MCA_btl_tcp_if_include": "lo"}
    own_network = [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    command = [*own_network, sys.executable, "tests/mpi/wiretap.py", str(folder / "capture"), *program]
    done = run_limited(command, 120, {**mpi.start_env(), **over_tcp})
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    return (folder / "capture").read_bytes()


def test_on_the_wire_nothing_can_be_read_with_tls_and_all_without(hospitals: Path, mpi: Mpi, tmp_path: Path) -> None:
    """A known update up, a known model down, and a known image: an image that leaves is a fault, here on purpose."""
    probe = ["unshare", "--map-root-user", "--net", "true"]
    if os.geteuid() and subprocess.run(probe, capture_output=True, check=False).returncode:
        missing("no right to read packets: not root, and no network namespace of one's own")
    known = {"update": known_update(2), "model": known_update(99), "image": known_image(3)}
    found = {}
    for tls in ("off", "on"):
        capture = tapped(mpi, tmp_path / tls, {"set": {"exchange.tls": tls}}, hospitals / "door.yaml")
        assert len(capture) > 2 * sum(map(len, known.values())), "the payloads went another way than TCP"
        found[tls] = {name: pieces_found(payload, capture) for name, payload in known.items()}
    print(found)
    assert found == {"off": dict.fromkeys(known, 1.0), "on": dict.fromkeys(known, 0.0)}


def train(start: Run, hospitals: Path, run_dir: Path, *sets: str, program: tuple[str, ...] = ("run.py",)) -> tuple:
    overrides = [word for pair in sets for word in ("--set", pair)]
    return start([*program, "train", hospitals / "door.yaml", "--run-dir", run_dir, *overrides])


@pytest.fixture(scope="module")
def two_ranks(mpirun: Run) -> Run:
    return lambda args: mpirun(2, args)


def test_a_refusal_ends_the_run_with_one_message_and_status_2(hospitals: Path, two_ranks: Run, tmp_path: Path) -> None:
    pki.init(tmp_path / "pki", SITES)
    pki.revoke(tmp_path / "pki", "site4")
    status, _, err = train(two_ranks, hospitals, tmp_path / "run", f"exchange.pki={tmp_path / 'pki'}")
    assert (status, err.count("error: "), "Traceback" in err) == (2, 1, False)
    assert "site site4: TLS with site4 refused: certificate revoked" in err


@pytest.fixture(scope="module")
def straight(hospitals: Path, two_ranks: Run) -> Path:
    """A run from beginning to end."""
    status, out, err = train(two_ranks, hospitals, hospitals / "straight")
    assert status == 0, err
    assert "wire: TLS 1.3 between every hospital and rank 0" in out
    return hospitals / "straight"


def test_every_payload_of_a_run_is_in_a_log(straight: Path) -> None:
    found = report(straight).facts
    assert {name: check["holds"] for name, check in found["checks"].items()} == dict.fromkeys(
        ("kinds", "counts", "wire", "contracts", "search"), True
    ), found["checks"]
    records = [json.loads(line) for line in (straight / "rounds.jsonl").read_text().splitlines()]
    assert found["rounds"] == [{key: r[key] for key in ("round", "bytes_up", "bytes_down")} for r in records]
    for number, site in enumerate(SITES):
        entries = read_log(straight / "sites" / site / "egress.jsonl")
        away = number > 1
        assert [e.round for e in entries if e.kind == "update"] == [1, 2, 3]
        assert {e.via for e in entries if e.kind in ("update", "metrics")} == {"tls" if away else "process"}
        assert sum(e.via == "clear" and e.kind == "hello" for e in entries) == 2 * away, "the TLS handshake"
        assert {e.searched for e in entries if e.kind in ("update", "metrics")} == {1}
    assert [e.round for e in read_log(straight / "egress.jsonl") if e.kind == "update"] == [None, 1, 2, 3]


def test_the_verb_tells_of_a_gap_between_log_and_count(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["egress", str(straight)]) == 0
    told = capsys.readouterr().out
    assert told.count("sender ") == 1, "one table, not one for each few columns"
    assert "holds" in told
    assert "BROKEN" not in told
    run = shutil.copytree(straight, tmp_path / "run")
    log = run / "sites" / "site3" / "egress.jsonl"
    lines = log.read_text().splitlines(True)
    update = next(number for number, line in enumerate(lines) if '"kind": "update"' in line)
    unsearched = re.sub('"searched": [0-9]+', '"searched": null', lines[update].replace("update", "metrics"))
    for changed, broken in (
        ([*lines[:update], *lines[update + 1 :]], "counts"),
        ([line.replace('"kind": "metrics"', '"kind": "images"') for line in lines], "kinds"),
        ([line.replace('"via": "tls"', '"via": "clear"') for line in lines], "wire"),
        ([*lines, unsearched], "search"),
    ):
        log.write_text("".join(changed))
        assert main(["egress", str(run), "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert [name for name, check in found["checks"].items() if check["holds"] is False] == [broken]


def test_a_state_that_differs_stops_the_run_which_then_goes_on_from_before(
    hospitals: Path, straight: Path, two_ranks: Run
) -> None:
    run_dir = hospitals / "differs"
    status, _, err = train(two_ranks, hospitals, run_dir, program=("-m", "tests.mpi.faulty", "memory"))
    assert status == 1
    assert "round 2: the global state at rank 1 (site3, site4) is not the aggregator's" in err
    assert len((run_dir / "rounds.jsonl").read_text().splitlines()) == 1
    status, out, err = train(two_ranks, hospitals, run_dir)
    assert status == 0, err
    assert "resuming after round 1" in out
    np.testing.assert_array_equal(params(run_dir), params(straight))
    checks = report(run_dir).facts["checks"]
    assert checks["counts"]["holds"]
    assert "sent again after a restart" in checks["counts"]["text"]


def test_a_byte_changed_in_a_round_stops_the_run_and_a_lost_site_joins_with_the_full_model(
    hospitals: Path, two_ranks: Run
) -> None:
    run_dir = hospitals / "changed"
    status, _, err = train(two_ranks, hospitals, run_dir, program=("-m", "tests.mpi.faulty", "wire"))
    assert status == 1
    assert "error: rank 0: site4: its update message was changed, moved or sent again" in err
    assert len((run_dir / "rounds.jsonl").read_text().splitlines()) == 1
    shutil.rmtree(run_dir / "sites" / "site4")
    status, _, err = train(two_ranks, hospitals, run_dir)
    assert status == 0, err
    assert "site site4: nothing of this run is here; it joins with the full model" in err
    full = [e for e in read_log(run_dir / "egress.jsonl") if e.kind == "update" and e.round is None]
    assert full[-1].bytes > 3.5 * params(run_dir).size, "dense, not the top of it"
    assert (run_dir / "summary.json").exists()
    assert not report(run_dir).facts["checks"]["counts"]["holds"], "its log of round 1 is lost as well"
