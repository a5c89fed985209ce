"""TensorBoard event files and an MLflow file store, written at rank 0 from the records of the rounds.

What goes there is what rounds.jsonl and summary.json have: nothing that was not released. No server is asked: both are
folders in the run directory. Every start writes the points of the rounds done anew, so that a resumed run has each
point once, also where a round was recorded, lost and done again.
"""

import importlib.util
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedhpc.config.schema import RunConfig
from fedhpc.config.tracking import PACKAGES, Tracker
from fedhpc.records.run_directory import RunDirectory
from fedhpc.util.files import refuse_link

LOG = logging.getLogger(__name__)
Record = Mapping[str, Any]
ROUND = ("auc_val", "epsilon", "evaluation_epsilon", "bytes_up", "bytes_down")
RESULT = ("auc", "f1", "sensitivity", "sensitivity_early", "epsilon", "evaluation_epsilon")
PARAMETERS = ("name", "mode", "seed")
EXPERIMENT = "fedhpc"
NOT_WRITTEN = "tracking: %s could not be written (%s) and gets no more points in this start; rounds.jsonl has all"


class Sink(Protocol):
    """One place that points are written to."""

    def round(self, record: Record) -> None:
        """Write the points of a round."""

    def finish(self, summary: Record) -> None:
        """Write the result, and close."""


def tracking_problems(config: RunConfig) -> list[str]:
    """Return which packages that `tracking` needs are not there, a line each; for rank 0, before anything is spent."""
    return [
        f"tracking={name}: needs the package {PACKAGES[name]}, which is not installed at rank 0. Install it with: pip "
        "install 'fedhpc[tracking]'"
        for name in config.tracking
        if importlib.util.find_spec(PACKAGES[name]) is None
    ]


def open_sinks(directory: RunDirectory, config: RunConfig, records: Sequence[Record]) -> tuple[Sink, ...]:
    """Return the places that the config names, each with the points of all rounds done.

    Args:
        directory: of the run.
        config: resolved.
        records: of the rounds done, after a resume has cut what was not saved.
    """
    made: dict[Tracker, Callable[[Path, RunConfig, Sequence[Record]], Sink]] = {
        "tensorboard": TensorBoard,
        "mlflow": MLflow,
    }
    sinks: list[Sink] = []
    for name in config.tracking:
        try:
            sinks.append(made[name](directory.path, config, records))
        except Exception as error:
            LOG.warning(NOT_WRITTEN, name, type(error).__name__)
    return tuple(sinks)


def tell(sinks: Sequence[Sink], write: Callable[[Sink], None]) -> tuple[Sink, ...]:
    """Write to all sinks; return those that could be written. A run of hours is not ended by a tracker.

    What a sink lacks is written at the next start; rounds.jsonl has all of it.
    """
    kept = []
    for sink in sinks:
        try:
            write(sink)
            kept.append(sink)
        except Exception as error:
            LOG.warning(NOT_WRITTEN, type(sink).__name__, type(error).__name__)
    return tuple(kept)


def points(record: Record) -> Iterator[tuple[str, float]]:
    """Yield the points of a round, name and value; names have a slash where there are several of a kind.

    >>> list(points({"auc_val": 0.9, "epsilon": None, "seconds": {"train": 2.0}, "per_site": {"a": {"bytes_up": 5}}}))
    [('auc_val', 0.9), ('seconds/train', 2.0), ('sites/a/bytes_up', 5.0)]
    """
    found = {key: record.get(key) for key in ROUND}
    found |= {f"seconds/{phase}": seconds for phase, seconds in record["seconds"].items()}
    for site, values in record["per_site"].items():
        found |= {f"sites/{site}/{key}": values.get(key) for key in ROUND}
    yield from ((name, float(value)) for name, value in found.items() if value is not None)


def _result(summary: Record) -> dict[str, float]:
    return {f"final/{key}": float(summary[key]) for key in RESULT if summary.get(key) is not None}


class TensorBoard:
    """Event files in tensorboard/, made anew at every start: one file has all rounds."""

    def __init__(self, folder: Path, config: RunConfig, records: Sequence[Record]) -> None:
        place = folder / "tensorboard"
        refuse_link(place)
        # Seconds to import, for runs that ask for it alone.
        from tensorboardX import SummaryWriter

        shutil.rmtree(place, ignore_errors=True)
        self._writer = SummaryWriter(logdir=str(place))
        self._rounds = config.training.rounds
        for record in records:
            self.round(record)

    def round(self, record: Record) -> None:
        """See `Sink`."""
        for name, value in points(record):
            self._writer.add_scalar(name, value, global_step=record["round"])
        self._writer.flush()

    def finish(self, summary: Record) -> None:
        """See `Sink`."""
        for name, value in _result(summary).items():
            self._writer.add_scalar(name, value, global_step=summary["rounds"])
        self._writer.close()


class MLflow:
    """A run in the file store mlruns/, made anew at every start."""

    def __init__(self, folder: Path, config: RunConfig, records: Sequence[Record]) -> None:
        place = folder / "mlruns"
        # Earlier runs in it are removed below.
        refuse_link(place)
        # MLflow says of its file store that it gets no new features, and refuses it unless asked in this way.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # From 3.2 on it tells its vendor of every run, unless this is set before it is imported.
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=place.absolute().as_uri())
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = self._client.create_experiment(EXPERIMENT) if found is None else found.experiment_id
        # MLflow itself only marks a run as deleted.
        for earlier in (place / experiment).glob("*/meta.yaml"):
            shutil.rmtree(earlier.parent)
        self._run = self._client.create_run(experiment, run_name=config.name).info.run_id
        parameters = {**{key: getattr(config, key) for key in PARAMETERS}, **_parameters(config)}
        for key, value in parameters.items():
            self._client.log_param(self._run, key, value)
        for record in records:
            self.round(record)

    def round(self, record: Record) -> None:
        """See `Sink`."""
        self._log(dict(points(record)), record["round"])

    def finish(self, summary: Record) -> None:
        """See `Sink`."""
        self._log(_result(summary), summary["rounds"])
        self._client.set_terminated(self._run)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now_ms, step) for name, value in values.items()])


def _parameters(config: RunConfig) -> dict[str, object]:
    return {
        "model": config.model.label,
        "rounds": config.training.rounds,
        "lr": config.training.lr,
        "epsilon": config.privacy.epsilon,
        "density": config.exchange.density,
        "config_digest": config.digest(),
        "host": socket.gethostname(),
    }
