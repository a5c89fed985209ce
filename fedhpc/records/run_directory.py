"""The run directory: the names of all files of a run. `fedhpc.util.files` writes and reads them.

runs/<name>/
    config.yaml          the resolved config; written when everything that can be checked has been
    model_source.py      the source of the model, where it is the user's own (model.build); config.yaml has its digest
    run.json             an id drawn for this run, which its checkpoints carry
    schedule.json        the share of its work that each site does (`schedule.policy: plan`)
    initial.json         which model.pt the run was started from (`train --init-from`)
    lock.json, .lock     who is at work here; gone when nobody is
    environment.json     versions, host, git commit
    rounds.jsonl         one record a round, appended
    summary.json         the result
    curves.json          ROC curves and calibration of the final model (`fedhpc.records.curves`)
    examples.json        a few public or synthetic images for the report, never a hospital's
    contribution.json    who contributed how much, by `run.py contribution`
    MODEL_CARD.md        what the model is for, from what data, how good and how private
    report.html          the result as a page, with .json and .csv; `run.py report` makes it anew
    model.pt             the final model, weights only
    state/round-0007.npz the global parameters after 7 rounds; the last three are kept
    state/updates/       round-0007.npz: what rank 0 received in round 7 (`contribution.store_updates`); mode 0600
    egress.jsonl         what the aggregator sent, a line a payload
    tensorboard/, mlruns/  the points of rounds.jsonl for these programs (`tracking`)
    sites/<site>/        ledger.jsonl, egress.jsonl, residual-0007.npz or model-0007.npz; private: shard.json, log.txt,
                         personal.pt and personal.json (`personalisation`; of a run that was continued after 10 rounds
                         also personal-0010.pt and .json); mode 0600
    aggregator-log.txt   rank 0's log, with nothing that is private to a site; mode 0600
"""

import json
import logging
import secrets
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedhpc.config.model_source import COPY, check_source, located, place_of, read_source
from fedhpc.config.problems import only_renamed, problems_message, problems_of
from fedhpc.config.schema import RECORDED, RunConfig
from fedhpc.config.strict_yaml import dump_yaml, parse_yaml
from fedhpc.errors import ConfigError, InputError
from fedhpc.util.directory_lock import DirectoryLock
from fedhpc.util.files import (
    append_line,
    cut_torn_line,
    make_folder,
    read_json,
    read_lines,
    read_text,
    refuse_link,
    reported,
    write_bytes,
    write_json,
    write_text,
)
from fedhpc.util.log import AGGREGATOR, LogFile

LOG = logging.getLogger(__name__)

RENAME = "An earlier version of fedhpc wrote this file: change these lines of it, and leave all else as it is"
RESTORE = "Restore it from a backup, or start in a new --run-dir"
REDO = "Remove it, and start the run again: it measures its model anew"
SUMMARY_KEYS = frozenset(
    ("mode", "epsilon", "auc", "auc_val", "auc_ci95", "f1", "sensitivity_early", "stopped", "git", "seconds")
) | {"bytes_up_per_round", "bytes_down_per_round", "dense_bytes_per_round"}

SHOWN = frozenset(("auc_val", "epsilon", "bytes_up", "bytes_down"))
"""What reports show of a round, beside what a run needs of it to go on."""


class RunDirectory:
    """Owns the names of a run's files. Only rank 0 writes outside `sites/`, only a site's rank inside its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.summary, self.model = path / "config.yaml", path / "summary.json", path / "model.pt"
        self.rounds, self.environment = path / "rounds.jsonl", path / "environment.json"
        self.starts, self.curves = path / "starts.jsonl", path / "curves.json"
        self.examples, self.contribution = path / "examples.json", path / "contribution.json"
        self.report, self.model_card = path / "report.html", path / "MODEL_CARD.md"
        self.aggregator_egress, self.identity = path / "egress.jsonl", path / "run.json"
        self.initial = path / "initial.json"
        self.schedule = path / "schedule.json"
        self.state, self.lock = path / "state", DirectoryLock(path)
        self.updates = self.state / "updates"
        self._torn_line_reported = False

    def site(self, name: str) -> Path:
        """Return the folder of one site."""
        return self.path / "sites" / name

    def refuse_links(self) -> None:
        """Refuse links in the place of folders where checkpoints are replaced and removed, which may be another run's.

        Raises:
            FileError: there is one.
        """
        for folder in (self.state, self.updates):
            refuse_link(folder)

    def ledger(self, site: str) -> Path:
        """Return the site's privacy ledger."""
        return self.site(site) / "ledger.jsonl"

    def egress(self, site: str) -> Path:
        """Return the log of all that has left the site."""
        return self.site(site) / "egress.jsonl"

    def log(self, site: str, rank: int) -> LogFile:
        """Return the site's own log, for what may be said inside the hospital only, too; `rank` writes it."""
        return LogFile(self.site(site) / "log.txt", rank, site)

    def aggregator_log(self) -> LogFile:
        """Return the log of rank 0, which holds nothing that is private to a site."""
        return LogFile(self.path / "aggregator-log.txt", 0, AGGREGATOR)

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved config.

        Raises:
            FileError: where it cannot be written.
        """
        write_text(self.config, config_text(config, self.path))

    def write_identity(self) -> str:
        """Return the id of this run; draw it where the run has none yet."""
        if not self.identity.exists():
            write_json(self.identity, {"run": secrets.token_hex(16)})
        return str(read_json(self.identity, RESTORE).get("run"))

    def archive(self, rounds: int) -> None:
        """Keep the result of a finished run of so many rounds under its own name: the run goes on."""
        for path in (self.summary, self.curves, self.model, self.model_card, *self.path.glob("sites/*/model.pt")):
            if path.exists():
                with reported(path, "renamed"):
                    path.rename(path.with_name(f"{path.stem}-{rounds:04d}{path.suffix}"))

    def continued(self) -> list[int]:
        """After how many rounds this run had finished before it was continued."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in self.path.glob("summary-[0-9]*.json"))

    def has_rounds(self) -> bool:
        """Return whether a round was finished here, by the records or, where those are gone, by the checkpoints."""
        if self.rounds.exists():
            return bool(self.read_rounds())
        return any(self.path.glob("sites/*/model-*.npz")) or any(self.path.glob("state/round-*.npz"))

    def read_config(self) -> RunConfig | None:
        """Return the config of the run that was started here; None where there is none.

        Raises:
            InputError: where it cannot be read, or is no config of this version.
        """
        if not self.config.exists():
            return None
        try:
            tree = parse_yaml(read_text(self.config, RESTORE), str(self.config))
            if isinstance(tree, dict):
                _refuse_other_source(tree, self.config)
                located(tree, self.path)
            return RunConfig.model_validate(tree, context=RECORDED)
        except ConfigError as error:
            raise InputError(f"{error}. The file was cut or changed. {RESTORE}.", code="file.damaged") from None
        except ValidationError as error:
            remedy = RENAME if only_renamed(error) else RESTORE
            raise InputError(
                f"{problems_message(self.config, problems_of(error))}\n{remedy}.", code="file.damaged"
            ) from None

    def write_json(self, path: Path, content: object) -> None:
        """Write one JSON document; NaN is refused."""
        write_json(path, content)

    def read_summary(self) -> dict[str, Any]:
        """Return the result of a finished run.

        Raises:
            InputError: where it cannot be read, or is no `summary.json` of a run.
        """
        summary = read_json(self.summary, REDO)
        lacking = sorted(SUMMARY_KEYS - summary.keys())
        if lacking:
            raise InputError(
                f"{self.summary}: lacks {', '.join(lacking)}; it was cut or changed. {REDO}.", code="file.damaged"
            )
        return summary

    def read_rounds(self) -> list[dict[str, Any]]:
        """Return the records of all rounds done. A last line that a crash has cut is left out with a warning.

        Raises:
            InputError: where a line is not the record of its round.
        """
        if not self.rounds.exists():
            return []
        lines, torn = read_lines(self.rounds, RESTORE)
        if torn and not self._torn_line_reported:
            self._torn_line_reported = True
            LOG.warning("%s: its last line is incomplete and is left out", self.rounds)
        return [_record(line, self.rounds, number) for number, line in enumerate(lines, 1)]

    def read_whole_rounds(self) -> list[dict[str, Any]]:
        """Return the records for one who shows them: `read_rounds`, and what is shown of a round is there.

        Raises:
            InputError: as `read_rounds`, or a record that this version has not written.
        """
        records = self.read_rounds()
        for number, record in enumerate(records, 1):
            seconds, sites = record["seconds"], record["per_site"]
            if not (
                isinstance(seconds, dict) and "total" in seconds and isinstance(sites, dict) and record.keys() >= SHOWN
            ):
                raise InputError(
                    f"{self.rounds}:{number}: lacks what is shown of a round; it was cut or changed. {RESTORE}.",
                    code="file.damaged",
                )
        return records

    def write_rounds(self, records: list[dict[str, Any]]) -> None:
        """Write all records anew; used at a resume, where a round may have been recorded but not saved."""
        write_text(self.rounds, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))

    def append_round(self, record: dict[str, Any]) -> None:
        """Append the record of the next round; on disk when this returns."""
        append_line(self.rounds, json.dumps(record, allow_nan=False))

    def note_start(self, start: dict[str, Any]) -> list[dict[str, Any]]:
        """Append what is known of a start of the run as its rounds begin; return all starts, this one last."""
        cut_torn_line(self.starts)
        append_line(self.starts, json.dumps(start, allow_nan=False))
        lines, _ = read_lines(self.starts, RESTORE)
        try:
            starts = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            starts = [None]
        if not all(isinstance(one, dict) and "after_round" in one for one in starts):
            raise InputError(
                f"{self.starts}: was changed; it only tells when the run was started: remove it", code="file.damaged"
            )
        return starts


def config_text(config: RunConfig, folder: Path) -> str:
    """Return a config as YAML for a file in `folder`, after the source of its model was copied there.

    Raises:
        FileError: the copy cannot be written.
        ConfigError: the source is not the one that the config names any more.
    """
    make_folder(folder)
    tree = config.model_dump(mode="json")
    if config.model.build is not None:
        source = read_source(config.model.build)
        check_source(source, config.model)
        write_bytes(folder / COPY, source)
        tree["model"]["build"] = f"{COPY}:{place_of(config.model.build)[1]}"
    return dump_yaml(tree)


def _refuse_other_source(tree: dict[str, Any], path: Path) -> None:
    """See that a run's config names the copy of its model's source, which docs/deploy.md says to read first.

    Raises:
        ConfigError: it names another file or module, which would be executed in the place of the copy.
    """
    model = tree.get("model")
    build = model.get("build") if isinstance(model, dict) else None
    if isinstance(build, str) and place_of(build)[0] != COPY:
        raise ConfigError(f"{path}: model.build={build}: a run writes {COPY} there, the copy of its source")


def _record(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not {"round", "per_site", "ledger_heads", "seconds"} <= record.keys():
        raise InputError(
            f"{path}:{number}: is not the record of a round; it was cut or changed. {RESTORE}.", code="file.damaged"
        )
    if record["round"] != number:
        raise InputError(
            f"{path}:{number}: is round {record['round']}; round {number} belongs there. {RESTORE}.",
            code="file.damaged",
        )
    return record
