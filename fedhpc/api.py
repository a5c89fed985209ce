"""The Python interface: load a config, train, open what a run has left. For notebooks and scripts.

The same as `run.py train`: in one process all sites train in turn; under `mpirun` or `srun` each rank plays its site.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhpc.config.loader import load_config as read_config
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, is_of_one_rank
from fedhpc.records.run_directory import RunDirectory

if TYPE_CHECKING:
    from fedhpc.models.saved import SavedModel

BAD_INPUT, FAILED = 2, 1
"""Exit statuses, as of the command line."""

__all__ = ["Run", "load_config", "open_run", "train"]


def load_config(path: str | Path, overrides: str | Sequence[str] = ()) -> RunConfig:
    """Read a config.

    Args:
        path: the YAML file.
        overrides: `section.key=value` each, as for `--set`; or a single one.

    Raises:
        ConfigError: with every problem of the config, one a line.
    """
    return read_config(Path(path), [overrides] if isinstance(overrides, str) else list(overrides))


@dataclass(frozen=True)
class Run:
    """What a run has left in its directory. Everything here is what the run has released; no image is among it."""

    path: Path

    @cached_property
    def config(self) -> RunConfig:
        """The resolved config; InputError where there is none."""
        config = RunDirectory(self.path).read_config()
        if config is None:
            raise InputError(
                f"{self.path}: is no run directory, config.yaml is missing. Give the directory of a run",
                code="run-directory.not-a-run",
            )
        return config

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """One record for each finished round, as in rounds.jsonl."""
        return RunDirectory(self.path).read_rounds()

    @property
    def summary(self) -> dict[str, Any]:
        """The result, as in summary.json; InputError where the run has not finished."""
        directory = RunDirectory(self.path)
        if not directory.summary.exists():
            raise self._lacks(f"has not finished, {len(self.rounds)} round(s) are done. Go on with fedhpc.train")
        return directory.read_summary()

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon of any site for its training units; None without privacy, inf with privacy.noise_seed.

        Of validation and test patients it is `summary["evaluation_epsilon"]`. InputError where it has not finished.
        """
        spent: float | None = self.summary["epsilon"]
        return spent if self.summary.get("insecure_noise_seed") is None else math.inf

    def model(self) -> "SavedModel":
        """Return the final model with its classes and image shape; InputError where there is none or it is not rebuilt.

        The source of `model.build` is executed (docs/add-a-model.md).
        """
        from fedhpc.models.saved import load_model

        path = RunDirectory(self.path).model
        if not path.exists():
            raise self._lacks("has no model.pt: it has not finished, or mode=local left sites/SITE/model.pt")
        return load_model(path)

    def _lacks(self, problem: str) -> InputError:
        return InputError(f"{self.path}: {problem}", code="run-directory.not-a-run")


def open_run(path: str | Path) -> Run:
    """Open the directory of a run, finished or not.

    Raises:
        InputError: it is not the directory of a run.
    """
    run = Run(Path(path))
    run.config  # noqa: B018  read now, so that a wrong path is refused here
    return run


def train(config: RunConfig | str | Path, run_dir: str | Path | None = None, *, stop_after: int | None = None) -> Run:
    """Train as the config says; where the run directory holds rounds of this config already, go on after them.

    Args:
        config: a config, or the path of one.
        run_dir: where the run is kept; None: runs/<name>.
        stop_after: stop after so many more rounds; the next call goes on.

    Raises:
        InputError: bad config, bad shard, a run directory of another config. At every rank, with the same message.
    """
    from fedhpc.run.rounds.preemption import StopRequest
    from fedhpc.run.start.agreement import Source, check_start
    from fedhpc.run.train import Machine, Work
    from fedhpc.run.train import train as train_here
    from fedhpc.transport.mpi import connect
    from fedhpc.util.startup import Startup

    if stop_after is not None and stop_after < 1:
        raise InputError(f"stop_after={stop_after}: must be a whole number of at least 1, or None", code="command-line")
    startup, transport = Startup(), connect()
    # Read where all ranks learn of a problem, also of one rank's alone.
    given = config if isinstance(config, RunConfig) else Path(config)
    source = Source(given, [], None if run_dir is None else Path(run_dir))
    try:
        check_start(transport, source)
        train_here(Work(source, stop_after), Machine(transport, StopRequest(), startup))
    except InputError as error:
        if is_of_one_rank(error, transport.size):
            _end_others(transport.size, BAD_INPUT)
        raise
    except BaseException:
        _end_others(transport.size, FAILED)
        raise
    return Run(source.run_dir or Path("runs") / source.load().name)


def _end_others(ranks: int, status: int) -> None:
    from fedhpc.transport.mpi_library import abort_at_exit

    if ranks > 1:
        abort_at_exit(status)
