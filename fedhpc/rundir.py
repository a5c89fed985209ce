"""The run directory: where every file of a run lies, each written to a temporary name, fsynced and renamed.

runs/<name>/
    config.yaml          the resolved config
    environment.json     versions, host, git commit
    rounds.jsonl         one record a round
    summary.json         the result
    model.pt             the final model, weights only
    state/round-0007.npz the global parameters after 7 rounds; the last three are kept
    egress.jsonl         what the aggregator sent, a line a payload
    sites/<site>/        ledger.jsonl, egress.jsonl, residual-0007.npz or model-0007.npz
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from fedhpc.config import RunConfig


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a temporary file, then put it at `path` in one step: a reader sees the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """The same for a text, in UTF-8."""
    write_atomically(path, lambda file: _put(file, text))


class RunDirectory:
    """Owns the names of a run's files. Only rank 0 writes outside `sites/`, only a site's rank inside its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.summary, self.model = path / "config.yaml", path / "summary.json", path / "model.pt"
        self.rounds, self.environment = path / "rounds.jsonl", path / "environment.json"
        self.office_egress = path / "egress.jsonl"

    def site(self, name: str) -> Path:
        """The folder of one site."""
        return self.path / "sites" / name

    def ledger(self, site: str) -> Path:
        """The site's privacy ledger."""
        return self.site(site) / "ledger.jsonl"

    def egress(self, site: str) -> Path:
        """The log of all that has left the site."""
        return self.site(site) / "egress.jsonl"

    def write_config(self, config: RunConfig) -> None:
        """The resolved config."""
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_atomically(self.config, lambda file: _put(file, text))

    def read_config(self) -> RunConfig | None:
        """The config of the run that was started here; None where there is none."""
        if not self.config.exists():
            return None
        return RunConfig.model_validate(yaml.safe_load(self.config.read_text(encoding="utf-8")))

    def write_json(self, path: Path, content: object) -> None:
        """One JSON document; NaN is refused."""
        write_atomically(path, lambda file: _put(file, json.dumps(content, indent=2, allow_nan=False) + "\n"))

    def read_rounds(self) -> list[dict[str, Any]]:
        """The records of all rounds done."""
        if not self.rounds.exists():
            return []
        return [json.loads(line) for line in self.rounds.read_text(encoding="utf-8").splitlines()]

    def write_rounds(self, records: list[dict[str, Any]]) -> None:
        """All records anew; used at a resume, where a round may have been recorded but not saved."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_atomically(self.rounds, lambda file: _put(file, lines))


def _put(file: BinaryIO, text: str) -> None:
    file.write(text.encode())
