"""Stopped or killed in any phase, then started again: the same bits as a run that was never broken."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedhpc.cli.main import BAD_INPUT, FAILED, FINISHED, INTERRUPTED, RESUMABLE, main
from fedhpc.cli.status import report_failure, report_stop
from fedhpc.errors import InputError, Interrupted
from fedhpc.privacy.ledger import read_ledger
from fedhpc.records.checkpoint import DIGEST, OWNER, forget_after, intact_rounds, load_state, save_state, saved_rounds
from fedhpc.run.rounds.preemption import StopRequest
from fedhpc.transport import pki
from tests.conftest import REPO, run_limited
from tests.mpi.test_federated import make_shard
from tests.slurm.cluster import until
from tests.support.broken_runs import PHASES, on_entering, signal_myself

SITES = ("site1", "site2")
ROUNDS = 4
PRIVATE = ("privacy.epsilon=8", "privacy.sample_rate=0.25", "privacy.noise_seed=1")


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The handlers as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small hospitals."""
    folder = tmp_path_factory.mktemp("preempted")
    pki.init(folder / "pki", SITES)
    for site in SITES:
        make_shard(folder, site, 40)
    tree = {
        "name": "tiny",
        "data": {"shards": str(folder / "{site}.h5"), "sites": [{"name": name, "weight": 14} for name in SITES]},
        "training": {"rounds": ROUNDS, "local_epochs": 1, "batch_size": 16, "average_last": 0.5},
        "privacy": "off",
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "tiny.yaml"


def command(config: Path, run_dir: Path, *sets: str) -> list[str]:
    return ["train", str(config), "--run-dir", str(run_dir), *(word for pair in sets for word in ("--set", pair))]


def state(run_dir: Path, rounds: int) -> dict[str, np.ndarray]:
    return load_state(run_dir / "state", "round", rounds)


def rounds_done(run_dir: Path) -> int:
    return len((run_dir / "rounds.jsonl").read_text(encoding="utf-8").splitlines())


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name])


@pytest.fixture(scope="module")
def unbroken(config: Path) -> Callable[..., Path]:
    """`unbroken(*sets)`: the run directory of a run that nothing has broken; made once for each setting."""

    def run(*sets: str) -> Path:
        run_dir = config.parent / f"unbroken-{len(sets)}"
        if not run_dir.exists():
            assert main(command(config, run_dir, *sets)) == FINISHED
        return run_dir

    return run


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_ends_the_run_after_that_round(
    config: Path, unbroken: Callable[..., Path], tmp_path: Path, phase: str
) -> None:
    words = command(config, tmp_path)
    with on_entering(phase, 2, signal_myself(signal.SIGUSR1)):
        assert main([*words, "--status", str(tmp_path / "status")]) == RESUMABLE
    assert (tmp_path / "status").read_text(encoding="utf-8") == "75\n"
    assert rounds_done(tmp_path) == 2
    assert main(words) == FINISHED
    same(state(tmp_path, ROUNDS), state(unbroken(), ROUNDS))


def test_without_patience_the_round_is_left_and_done_again(
    config: Path, unbroken: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = command(config, tmp_path, "runtime.patience_s=0")
    with on_entering("train", 2, signal_myself(signal.SIGTERM)):
        assert main(words) == RESUMABLE
    assert rounds_done(tmp_path) == 1
    assert "SIGTERM came 0 s ago (runtime.patience_s): leaving the round after step 1 of" in capfd.readouterr().err
    assert main(words) == FINISHED
    same(state(tmp_path, ROUNDS), state(unbroken(), ROUNDS))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
def test_a_signal_before_the_first_round_ends_the_run_at_once(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: int,
    status: int,
) -> None:
    monkeypatch.setattr("fedhpc.run.train.open_session", lambda *_: signal_myself(number)())
    assert main([*command(config, tmp_path), "--status", str(tmp_path / "status")]) == status
    assert (tmp_path / "status").read_text(encoding="utf-8") == f"{status}\n"
    (line,) = capfd.readouterr().err.splitlines()
    assert (
        line == f"stopped by {signal.Signals(number).name} before the first round of this start; "
        "the same command starts again"
    )


def test_ctrl_c_keeps_the_rounds_and_says_so_in_one_line(
    config: Path, unbroken: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = command(config, tmp_path)
    with on_entering("aggregate", 2, signal_myself(signal.SIGINT)):
        assert main(words) == INTERRUPTED
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "stopped by Ctrl-C; what was finished is kept, and the same command goes on from there"
    assert rounds_done(tmp_path) == 1
    assert main(words) == FINISHED
    same(state(tmp_path, ROUNDS), state(unbroken(), ROUNDS))


def test_an_error_is_printed_whatever_launcher_left_its_rank_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A plain Python in a job step of SLURM, or started by a script under mpirun, inherits these."""
    for name in ("SLURM_PROCID", "PMIX_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.setenv(name, "1")
    assert main(["train", str(tmp_path / "missing.yaml")]) == BAD_INPUT
    assert "error: " in capfd.readouterr().err


def test_help_documents_every_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for status in (FINISHED, FAILED, BAD_INPUT, RESUMABLE, INTERRUPTED, 143):
        assert re.search(rf"^  {status} +\S", out, re.MULTILINE), status


def test_a_baseline_leaves_its_round_too(config: Path, tmp_path: Path) -> None:
    finals = []
    for name, broken in (("straight", False), ("broken", True)):
        words = command(config, tmp_path / name, "mode=local", "training.average_last=0", "runtime.patience_s=0")
        if broken:
            with on_entering("train", 2, signal_myself(signal.SIGUSR1)):
                assert main(words) == RESUMABLE
        assert main(words) == FINISHED
        finals.append([load_state(tmp_path / name / "sites" / site, "model", ROUNDS) for site in SITES])
    for one, two in zip(*finals, strict=True):
        same(one, two)


def charged(run_dir: Path) -> list[int]:
    charges = read_ledger(run_dir / "sites" / "site1" / "ledger.jsonl")[1]
    return [charge.round for charge in charges if charge.population == "train"]


def test_a_private_round_that_was_finished_is_charged_once(
    config: Path, unbroken: Callable[..., Path], tmp_path: Path
) -> None:
    words = command(config, tmp_path, *PRIVATE)
    with on_entering("train", 2, signal_myself(signal.SIGUSR1)):
        assert main(words) == RESUMABLE
    assert main(words) == FINISHED
    assert charged(tmp_path) == charged(unbroken(*PRIVATE)) == [0, 1, 2, 3]
    same(state(tmp_path, ROUNDS), state(unbroken(*PRIVATE), ROUNDS))


def test_a_private_round_that_was_left_is_charged_and_charged_again(
    config: Path, unbroken: Callable[..., Path], tmp_path: Path
) -> None:
    """What was spent stays spent: the budget ends a round earlier, and the rounds before have the same bits."""
    words = command(config, tmp_path, *PRIVATE, "runtime.patience_s=0")
    with on_entering("train", 2, signal_myself(signal.SIGUSR1)):
        assert main(words) == RESUMABLE
    assert charged(tmp_path) == [0, 1]
    assert main(words) == FINISHED
    assert charged(tmp_path) == [0, 1, 1, 2]
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert (summary["stopped"], summary["rounds"]) == ("budget", ROUNDS - 1)
    assert summary["epsilon"] <= 8
    same(state(tmp_path, ROUNDS - 1), state(unbroken(*PRIVATE), ROUNDS - 1))


def test_killed_in_any_phase(config: Path, unbroken: Callable[..., Path], tmp_path: Path, preloaded: list[str]) -> None:
    words: list[str] = []
    for phase in PHASES:
        words += [phase, "3", *command(config, tmp_path / phase), "--"]
    done = run_limited([*preloaded, "-m", "tests.support.broken_runs", "kill", *words], 120, {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    for phase in PHASES:
        assert rounds_done(tmp_path / phase) == 2, phase
        assert main(command(config, tmp_path / phase)) == FINISHED
        same(state(tmp_path / phase, ROUNDS), state(unbroken(), ROUNDS))


@pytest.mark.mpi
def test_one_rank_that_is_told_takes_the_others_along(
    config: Path, unbroken: Callable[..., Path], tmp_path: Path, mpirun: Callable[..., tuple[int, str, str]]
) -> None:
    """Rank 1 leaves its training; rank 0, which was told nothing, has trained to the end and leaves the round too."""
    words = command(config, tmp_path, "runtime.patience_s=0")
    status, out, err = mpirun(2, ["-m", "tests.support.broken_runs", "signal", "1", "train", "2", *words])
    assert status == RESUMABLE, err
    assert err.count("leaving the round after step 1 of") == 1
    assert "stopped early in" in out
    assert rounds_done(tmp_path) == 1
    status, _, err = mpirun(2, ["run.py", *words])
    assert status == FINISHED, err
    same(state(tmp_path, ROUNDS), state(unbroken(), ROUNDS))


def test_broken_console_never_hides_a_stop(config: Path, tmp_path: Path, preloaded: list[str]) -> None:
    """Its launcher is gone, as mpirun is with a lost node: nobody reads what it prints."""
    run_dir, status = tmp_path / "run", tmp_path / "status"
    words = ["run.py", *command(config, run_dir, "training.rounds=400"), "--status", str(status)]
    read, write = os.pipe()
    process = subprocess.Popen([*preloaded, *words], cwd=REPO, stdout=write, stderr=write)
    os.close(write)
    try:
        assert until(lambda: status.exists() and rounds_done(run_dir) > 0, 90), process.poll()
        os.close(read)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert status.read_text(encoding="utf-8") == f"{RESUMABLE}\n"


def test_broken_console_never_hides_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while one is reported would be taken for a reader that has seen enough, and for success."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1, encoding="utf-8") as nobody:
        monkeypatch.setattr(sys, "stderr", nobody)
        with pytest.raises(BrokenPipeError):
            print("", file=sys.stderr)
        report_failure(RuntimeError("unforeseen"), 0)
        assert report_stop(KeyboardInterrupt()) == INTERRUPTED
        with contextlib.suppress(BrokenPipeError):
            nobody.close()


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another(path: Path) -> None:
    """A whole archive with other values under the old digest, as no disk error but a wrong copy would make it."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    changed = {name: value if name in (DIGEST, OWNER) else value + 1 for name, value in arrays.items()}
    np.savez(path, **changed)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [torn, another, gone])
@pytest.mark.parametrize("victim", ["state/round", "sites/site2/residual"])
def test_a_damaged_checkpoint_costs_a_round_and_a_warning(
    config: Path,
    unbroken: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    victim: str,
) -> None:
    shutil.copytree(unbroken(), tmp_path / "run")
    damage(tmp_path / "run" / f"{victim}-{ROUNDS:04d}.npz")
    assert main(command(config, tmp_path / "run")) == FINISHED
    out, err = capfd.readouterr()
    assert f"WARNING: {ROUNDS} rounds were recorded; going on after round {ROUNDS - 1}" in err
    assert (f"{victim}-{ROUNDS:04d}.npz: cannot be read" in err) == (damage is not gone)
    assert f"resuming after round {ROUNDS - 1}" in out
    same(state(tmp_path / "run", ROUNDS), state(unbroken(), ROUNDS))


def test_nothing_whole_is_refused(
    config: Path, unbroken: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(unbroken(), tmp_path / "run")
    for path in (tmp_path / "run" / "state").iterdir():
        torn(path)
    assert main(command(config, tmp_path / "run")) == 2
    assert "no round near that is whole on the disks of all ranks" in capfd.readouterr().err


def test_three_states_are_kept_and_later_ones_forgotten(tmp_path: Path) -> None:
    for round in range(1, 6):
        save_state(tmp_path, "round", round, {"params": np.full(3, round, np.float32)})
    assert saved_rounds(tmp_path, "round") == [3, 4, 5]
    assert intact_rounds(tmp_path, "round") == ([3, 4, 5], [])
    forget_after(tmp_path, "round", 4)
    assert saved_rounds(tmp_path, "round") == [3, 4]
    with pytest.raises(InputError, match="cannot be read"):
        load_state(tmp_path, "round", 5)


def test_the_last_step_is_never_left(capsys: pytest.CaptureFixture[str]) -> None:
    """A site that has trained has paid for it: only an unfinished training is given up."""
    notice = StopRequest(asked_s=0.0, by="SIGUSR1")
    step = notice.watched(lambda done, total: None, patience_s=0.0)
    with pytest.raises(Interrupted):
        step(1, 2)
    step(2, 2)
    StopRequest().watched(lambda done, total: None, patience_s=0.0)(1, 2)
    StopRequest(asked_s=0.0).watched(lambda done, total: None, patience_s=1e12)(1, 2)
