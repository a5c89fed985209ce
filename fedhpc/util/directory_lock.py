"""The exclusive lock of a directory: one program at a time works in it, on whatever node.

Two files in the directory:

- `.lock`, held by `flock`: the kernel lets go of it however the program ends. Where the file system passes locks
  between nodes (NFS, GPFS, BeeGFS, Lustre mounted with `flock`) that alone settles it.
- `lock.json` says who holds it: account, host, process, SLURM job and step. Where `flock` does not reach, it decides:
  it is made with `O_EXCL`, and one that was left behind is judged. On the same host its process is looked for; a SLURM
  job or step is looked up in the queue; a later start of the same SLURM job (a requeue) follows the earlier one.
  Where none of that gives an answer the user must say `--take-over`.
"""

import contextlib
import errno
import fcntl
import getpass
import json
import os
import secrets
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from fedhpc.errors import FileError, InputError
from fedhpc.util.clock import now
from fedhpc.util.files import keep_from_others, make_folder, read_json, reported, write_all, write_json
from fedhpc.util.processes import boot_id, born

ASK_S = 30
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
Judgement = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True)
class Holder:
    """Who holds the lock.

    Attributes:
        token: drawn anew for each start.
        born, boot: tell its process from a later one with the same number.
        job, step, restart: SLURM's; empty outside a job.
        since: UTC.
    """

    token: str
    account: str
    host: str
    pid: int
    born: str
    boot: str
    job: str
    step: str
    restart: str
    since: str

    @classmethod
    def this_process(cls, env: Mapping[str, str] = os.environ) -> "Holder":
        """Return this process as a holder."""
        return cls(
            token=secrets.token_hex(8),
            account=_account(),
            host=socket.gethostname(),
            pid=os.getpid(),
            born=born(os.getpid()),
            boot=boot_id(),
            job=env.get("SLURM_JOB_ID", ""),
            step=env.get("SLURM_STEP_ID", ""),
            restart=env.get("SLURM_RESTART_COUNT", "0") if "SLURM_JOB_ID" in env else "",
            since=now(),
        )

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"{self.account} on {self.host}, process {self.pid}{job}, since {self.since}"


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def judged(holder: Holder, mine: Holder) -> Judgement:
    """Return whether the holder that a lock file names is still at work, seen from this process."""
    if holder.job and holder.job == mine.job and holder.restart != mine.restart:
        return "dead"  # SLURM starts a job again only after it has ended all of it
    if holder.host == mine.host:
        same_process = holder.boot == mine.boot and born(holder.pid) == holder.born != ""
        return "alive" if same_process else "dead"
    return _judged_by_slurm(holder) if holder.job else "unknown"


def _judged_by_slurm(holder: Holder) -> Judgement:
    which = f"--steps={holder.job}.{holder.step}" if holder.step.isdecimal() else f"--jobs={holder.job}"
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", which, "--format=%i"], capture_output=True, text=True, check=False, timeout=ASK_S
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    if answer.returncode == 0:
        return "alive" if answer.stdout.strip() else "dead"
    return "dead" if "Invalid job" in answer.stderr else "unknown"


class DirectoryLock:
    """The lock of one directory; see the module. Not held when it is made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._flock, self._json = directory / ".lock", directory / "lock.json"
        self._descriptor: int | None = None
        self._alone = True
        self._mine: Holder | None = None

    def acquire(self, *, take_over: bool = False) -> str:
        """Take the lock; make the directory where there is none.

        Args:
            take_over: also from a holder of whom it cannot be found out whether it is at work.

        Returns:
            what the user must know: whose lock was left behind; empty where there was none.

        Raises:
            InputError: where another program holds it, or may hold it; names it.
        """
        make_folder(self._directory)
        mine = Holder.this_process()
        self._descriptor = self._flocked()
        try:
            note = self._claimed(mine, take_over)
        except BaseException:
            self._let_go()
            raise
        self._mine = mine
        return note

    def _flocked(self) -> int:
        with reported(self._flock, "opened for locking"):
            descriptor = os.open(self._flock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                keep_from_others(descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise self._busy(self._read()) from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    os.close(descriptor)
                    raise
                self._alone = False
        return descriptor

    def _claimed(self, mine: Holder, take_over: bool) -> str:
        try:
            with reported(self._json, "written"):
                descriptor = os.open(self._json, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                try:
                    write_all(descriptor, json.dumps(asdict(mine), indent=2).encode())
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            return ""
        except FileError as error:
            if not isinstance(error.__cause__, FileExistsError):
                with contextlib.suppress(OSError):
                    self._json.unlink()
                raise
        holder = self._read()
        # A lock file that was cut names nobody: its writer was stopped in the middle. With `flock` held that is sure.
        nobody: Judgement = "dead" if self._alone else "unknown"
        judgement = nobody if holder is None else judged(holder, mine)
        if judgement == "alive":
            raise self._busy(holder)
        if judgement == "unknown" and not take_over:
            raise InputError(
                f"{self._directory}: was locked by {holder}, and never released. From this host it cannot be seen "
                "whether that process is still at work. If it is not (its node failed, or it was killed there), start "
                "the same command with --take-over; if it is, wait for its end or give another --run-dir",
                code="run-directory.abandoned",
            )
        write_json(self._json, asdict(mine))
        return f"the lock of {holder or 'a process that did not get to its name'} was left behind: taken over"

    def holder(self) -> Holder | None:
        """Return who holds the lock by lock.json; None where nobody does."""
        return self._read()

    def _read(self) -> Holder | None:
        try:
            found = read_json(self._json, "")
            return Holder(**{field.name: found[field.name] for field in fields(Holder)})
        except (InputError, KeyError):
            return None

    def _busy(self, holder: Holder | None) -> InputError:
        return InputError(
            f"{self._directory}: another run is at work there: {holder or 'it has not told its name yet'}. Wait for "
            "its end, stop it, or give another --run-dir",
            code="run-directory.locked",
        )

    def check_held(self) -> None:
        """Raise FileError where the directory was removed, or its lock taken over, since `acquire`."""
        if self._mine is None:
            return
        found = self._read()
        if found is None or found.token != self._mine.token:
            said = f"the lock is now held by {found}" if found else "its lock.json was removed, or all of it"
            raise FileError(
                f"{self._directory}: is no longer this run's: {said}. The run was stopped, since what it does would "
                "not be recorded. Restore the directory, or start in a new --run-dir",
                code="run-directory.lost",
            )

    def release(self) -> None:
        """Let go of the lock, if this process holds it. Releasing twice is harmless."""
        if self._mine is not None:
            found = self._read()
            if found is not None and found.token == self._mine.token:
                with contextlib.suppress(OSError):
                    self._json.unlink()
            self._mine = None
        self._let_go()

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
