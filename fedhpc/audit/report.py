"""The audit as a table, as audit.json, and as one page with the pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fedhpc.audit.bounds import CEILING_CONFIDENCE, CONFIDENCE
from fedhpc.audit.contact_rows import Row
from fedhpc.audit.contact_sheet import Strip, contact_sheet
from fedhpc.audit.findings import CELL_NAMES, Result, cells_to_tell
from fedhpc.audit.releases import SETTINGS
from fedhpc.audit.statistics import AUDIT_RISK
from fedhpc.audit.target import Subject
from fedhpc.config.schema import RunConfig
from fedhpc.records.environment import git_commit
from fedhpc.util import files
from fedhpc.util.html import rendered
from fedhpc.util.text import fitted

FORMAT_VERSION = 2
TEMPLATE = Path(__file__).with_name("page.html.jinja")


def terminal_table(findings: Sequence[Result]) -> str:
    """One line a finding, and what the signs mean; no figure that was measured on patients without noise."""
    legend = f"epsilon >=: a lower bound with {CONFIDENCE:.0%} confidence. -: shown, not judged."
    return f"{fitted([CELL_NAMES, *(map(cells_to_tell, findings))])}\n\n{legend}"


def as_json(subject: Subject, findings: Sequence[Result], settings: Mapping[str, Any]) -> dict[str, Any]:
    """audit.json: the claim, all findings with their details, and how the audit was made."""
    p, plan = subject.config.privacy, subject.plan
    return {
        "verdict": verdict_of(subject, findings),
        "passed": all(finding.passed for finding in findings),
        "format_version": FORMAT_VERSION,
        "name": subject.config.name,
        "site": subject.site,
        "rounds_done": subject.rounds_done,
        "claim": {
            "epsilon": p.epsilon,
            "delta": p.delta,
            "unit": p.unit,
            "trust": p.trust,
            "clip_norm": p.clip_norm,
            "noise_multiplier": plan.noise_multiplier,
            "sample_rate": plan.sample_rate,
            "steps": plan.steps_per_round * subject.config.training.rounds,
        },
        "attacked_algorithm": "fedavg",
        "confidence": CONFIDENCE,
        "false_alarm_below": AUDIT_RISK,
        "findings": [finding.json() for finding in findings],
        "settings": dict(settings),
        "config_digest": subject.config.digest(),
        "git": git_commit(),
    }


def not_attacked(config: RunConfig) -> str:
    """Name what the config adds to the rounds of FedAvg that the attacks train; empty where it adds nothing.

    None of it reads patients again: all is computed of what a site has sent, or of the model that it was given. So the
    epsilon of the claim is the same with it; but the attacks do not show it.
    """
    added = {
        f"algorithm.name={config.algorithm.name}": config.algorithm.name != "fedavg",
        f"algorithm.local_layers={config.algorithm.local_layers}": config.algorithm.local_layers != "none",
        f"server.optimizer={config.server.optimizer}": config.server.optimizer != "sgd",
        f"aggregation.rule={config.aggregation.rule}": config.aggregation.rule != "mean",
    }
    named = ", ".join(what for what, differs in added.items() if differs)
    return f"The attacks trained by FedAvg with a plain mean, whatever {named} adds to it." if named else ""


def verdict_of(subject: Subject, results: Sequence[Result]) -> str:
    """One sentence. It names what failed and holds no figure that was measured on patients."""
    p, failed = subject.config.privacy, [result for result in results if not result.passed]
    claim = f"epsilon {p.epsilon:g} at delta {p.delta:g} for one {p.unit}"
    if not failed:
        held, caught = (sum(result.kind == kind for result in results) for kind in ("claim", "control"))
        return (
            f"Verdict: passed. Nothing that was measured at {subject.site} contradicts {claim}: {held} claims hold, "
            f"and {caught} ways to break privacy on purpose were noticed.{_more(subject)}"
        )
    broken = sorted({f"{result.attack} ({result.setting}: {result.verdict})" for result in failed})
    return (
        f"Verdict: FAILED. The audit of {subject.site} does not support {claim}: {'; '.join(broken)}.{_more(subject)}"
    )


def _more(subject: Subject) -> str:
    told = not_attacked(subject.config)
    return f" {told}" if told else ""


PUBLIC_KEYS = (
    "verdict",
    "passed",
    "format_version",
    "name",
    "site",
    "rounds_done",
    "claim",
    "attacked_algorithm",
    "false_alarm_below",
)
PUBLIC_RESULT_KEYS = ("attack", "setting", "kind", "verdict")


def public_part(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may lie outside of the site's folder: claims and verdicts, no figure that was measured."""
    results = [{key: finding[key] for key in PUBLIC_RESULT_KEYS} for finding in content["findings"]]
    kept = {key: content[key] for key in (*PUBLIC_KEYS, "config_digest", "git")}
    return {**kept, "real_patients": content["settings"]["real_patients"], "findings": results}


def told_part(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `--json` prints: all but the figures that were measured on patients without noise."""
    found = content["findings"]
    told = [{key: one[key] for key in PUBLIC_RESULT_KEYS} if one["unnoised"] else one for one in found]
    return {**content, "findings": told}


def inversion_sheet(rows: Sequence[Row]) -> Image.Image:
    """Return the contact sheet of all inversions (private)."""
    strips = [
        Strip(
            row.attack,
            row.note,
            [
                (row.original, [row.original_caption]),
                *((row.guesses[setting].image, row.guesses[setting].caption) for setting in SETTINGS),
            ],
        )
        for row in rows
    ]
    return contact_sheet(["original", *SETTINGS], strips)


def page(content: Mapping[str, Any], findings: Sequence[Result], sheet: Image.Image | None) -> str:
    """One self-contained HTML page (private: it shows a patient): the verdict, the pictures, the table."""
    return rendered(
        TEMPLATE,
        content=content,
        findings=findings,
        names=CELL_NAMES,
        picture=None if sheet is None else base64.b64encode(png(sheet)).decode(),
        risk=AUDIT_RISK,
        confidence=CONFIDENCE,
        sure=CEILING_CONFIDENCE,
    )


def png(image: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_bytes(path: Path, content: bytes, *, mode: int = files.PRIVATE) -> None:
    """Write a file whole, or not at all; make its folder. Its owner alone may read it unless `mode` says otherwise."""
    files.make_folder(path.parent)
    files.write_bytes(path, content, mode=mode)
