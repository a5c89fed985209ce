"""Runs whose disk becomes full at a write: `python -m tests.support.full_disk RUN CONFIG`, RUN on a small file system.

The same command is started again and again in children of one process that has imported everything. Each time the disk
becomes full, really full, before the first write to a file that no earlier start has failed at; then it is emptied.
The last start fails nowhere. A JSON line for each tells how it ended.
"""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import fedhpc.run.finished.finish
import fedhpc.run.preflight.check
import fedhpc.run.rounds.loop  # noqa: F401  (before the first fork, so that each child has it)
from fedhpc.cli.main import main
from fedhpc.run.preflight import rules

original_write = os.write


def fill(path: Path) -> None:
    """Take all that is left of the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    size = 2**16
    while size:
        try:
            original_write(descriptor, b"\0" * size)
        except OSError:
            size //= 2
    os.close(descriptor)


def full_at_new_file(done: set[str], ballast: Path, into: int) -> Callable[..., int]:
    """An `os.write` before whose first call to a file that is not in `done` the disk becomes full."""

    def write(descriptor: int, content: bytes) -> int:
        path = re.sub(r"\.\d+\.tmp$", ".tmp", os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.startswith(str(ballast.parent)) and path not in done and not ballast.exists():
            fill(ballast)
            original_write(into, f"{path}\n".encode())
        return original_write(descriptor, content)

    return write


def in_child(words: list[str], done: set[str], ballast: Path) -> tuple[int, str, str]:
    """(status, the file at whose write the disk became full, standard error) of a run in a child."""
    back, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(back)
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            os.write = full_at_new_file(done, ballast, into)  # type: ignore[assignment]
            try:
                status = main(words)
            except BaseException as error:
                print(f"Traceback: {error!r}", file=said)
                status = 99
        original_write(into, b"\0" + said.getvalue().encode())
        os._exit(status)
    os.close(into)
    with os.fdopen(back, "rb") as pipe:
        path, _, text = pipe.read().decode().partition("\0")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), path.strip(), text


def cases(run: Path, config: str) -> None:
    """Start the run until nothing is left to fail at."""
    rules.LEAST_FREE_BYTES = 0  # the preflight would refuse so small a disk
    ballast, done = run.parent / "ballast", set[str]()
    while True:
        status, path, said = in_child(["train", config, "--run-dir", str(run)], done, ballast)
        ballast.unlink(missing_ok=True)
        left = [str(found) for found in run.rglob("*.tmp")]
        print(json.dumps({"status": status, "path": path, "said": said, "left": left}), flush=True)
        if not path:
            return
        done.add(path)


if __name__ == "__main__":
    cases(Path(sys.argv[1]), sys.argv[2])
