"""The audit as a table, as audit.json, and as one page with the pictures."""

import base64
import html
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
from fedhpc.records.environment import git_commit
from fedhpc.util import files
from fedhpc.util.text import fitted

FORMAT_VERSION = 2
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 68rem; margin: 2rem auto;
  padding: 0 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
.bad { color: #b00020; font-weight: 600; } .good { color: #1b6e3c; } .note { color: #555; }
img { max-width: 100%; border: 1px solid #ddd; }
"""
EXPLANATION = """
<p>Every trial went through the code that trains and sends: what is attacked is the decoded payload, as the aggregator
sees it. A row <em>with DP</em> must stay below its limit; every other setting breaks privacy on purpose and must be
noticed, or the row above it proves nothing. A dash marks what is shown and not judged.</p>
<ul>
<li><b>measured / planned</b> and the other laws: a confidence interval in brackets, which must reach the bound. A sound
implementation fails the whole audit with a chance below {risk:g}.</li>
<li><b>epsilon</b>: a lower bound that holds with {confidence:.0%} confidence (Steinke, Nasr &amp; Jagielski 2023), from
canaries that took part or not by the toss of a coin; the limit is what the ledger's accountant claims for the same
steps. A claim is violated where four independent bounds say so.</li>
<li><b>AUC</b> and <b>TPR</b>: of telling who took part. The ceilings follow from the accountant's whole privacy curve:
no attack can pass them. In brackets the lower end of an interval of {sure:.4%} confidence, by which it is judged.</li>
<li><b>one step, two sites</b>: at a plan of the audit's own (epsilon 1 at delta 1e-5, one step, all units), for
faults that nobody thought of. <b>whole run</b>, <b>one round</b>, <b>real training</b>: at the
run's own noise, sample rate and steps.</li>
<li><b>ledger</b>: what the steps cost that the hospital was seen to take, beside what its ledger charged for them.</li>
<li><b>SSIM</b>, <b>cosine</b>: how like the original a reconstruction is; 1 is the same.</li>
</ul>
"""
READING = """
<p class="note">For SSIM and PSNR each original is scaled to [0, 1] and each reconstruction brought to that scale by the
best affine fit. The tiles show reconstructions as they came, from their 1st to their 99th percentile. A clip scales an
update and hides nothing; only the noise does. A network with ReLU and pooling is hard to search through even without
privacy, which is luck and no guarantee: the first two rows show what an update can hold.</p>
"""


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
        "confidence": CONFIDENCE,
        "false_alarm_below": AUDIT_RISK,
        "findings": [finding.json() for finding in findings],
        "settings": dict(settings),
        "config_digest": subject.config.digest(),
        "git": git_commit(),
    }


def verdict_of(subject: Subject, results: Sequence[Result]) -> str:
    """One sentence. It names what failed and holds no figure that was measured on patients."""
    p, failed = subject.config.privacy, [result for result in results if not result.passed]
    claim = f"epsilon {p.epsilon:g} at delta {p.delta:g} for one {p.unit}"
    if not failed:
        held, caught = (sum(result.kind == kind for result in results) for kind in ("claim", "control"))
        return (
            f"Verdict: passed. Nothing that was measured at {subject.site} contradicts {claim}: {held} claims hold, "
            f"and {caught} ways to break privacy on purpose were noticed."
        )
    broken = sorted({f"{result.attack} ({result.setting}: {result.verdict})" for result in failed})
    return f"Verdict: FAILED. The audit of {subject.site} does not support {claim}: {'; '.join(broken)}."


PUBLIC_KEYS = ("verdict", "passed", "format_version", "name", "site", "rounds_done", "claim", "false_alarm_below")
PUBLIC_RESULT_KEYS = ("attack", "setting", "kind", "verdict")


def public_part(content: Mapping[str, Any]) -> dict[str, Any]:
    """What may lie outside of the site's folder: claims and verdicts, no figure that was measured."""
    results = [{key: finding[key] for key in PUBLIC_RESULT_KEYS} for finding in content["findings"]]
    kept = {key: content[key] for key in (*PUBLIC_KEYS, "config_digest", "git")}
    return {**kept, "real_patients": content["settings"]["real_patients"], "findings": results}


def told_part(content: Mapping[str, Any]) -> dict[str, Any]:
    """What `--json` prints: all but the figures that were measured on patients without noise."""
    found = content["findings"]
    told = [{key: one[key] for key in PUBLIC_RESULT_KEYS} if one["unnoised"] else one for one in found]
    return {**content, "findings": told}


def inversion_sheet(rows: Sequence[Row]) -> Image.Image:
    """The contact sheet of all inversions (private)."""
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
    title = html.escape(f"Privacy audit of {content['name']}, site {content['site']}")
    head = "".join(f"<th>{name}</th>" for name in CELL_NAMES)
    explanation = EXPLANATION.format(confidence=CONFIDENCE, sure=CEILING_CONFIDENCE, risk=AUDIT_RISK)
    good = "good" if content["passed"] else "bad"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p class="{good}">{html.escape(content["verdict"])}</p>
<p class="note">This page holds figures and pictures of patients: keep it as private as the shard.</p>
{_pictures(sheet)}
<h2>What was measured</h2>
<p>{_summary(content)}</p>
<table><tr>{head}</tr>{"".join(map(_table_row, findings))}</table>
{explanation}
</body></html>
"""


def _pictures(sheet: Image.Image | None) -> str:
    if sheet is None:
        return ""
    picture = base64.b64encode(png(sheet)).decode()
    shown = f'<p><img alt="original and reconstructions" src="data:image/png;base64,{picture}"></p>'
    return f"<h2>What can be read out of an update</h2>{shown}{READING}"


def _summary(content: Mapping[str, Any]) -> str:
    c = content["claim"]
    return (
        f"Claimed: epsilon {c['epsilon']:g} at delta {c['delta']:g} for one {c['unit']}, by noise multiplier "
        f"{c['noise_multiplier']:.3f}, sample rate {c['sample_rate']:g} and {c['steps']:,} steps."
        + (" A quick audit: fewer trials and rounds, of one local epoch each." if content["settings"]["quick"] else "")
    )


def _table_row(finding: Result) -> str:
    *cells, verdict = finding.cells
    kind = "note" if finding.kind == "shown" else "good" if finding.passed else "bad"
    told = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<tr>{told}<td class="{kind}">{verdict}</td></tr>'


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_bytes(path: Path, content: bytes, *, mode: int = files.PRIVATE) -> None:
    """Write a file whole, or not at all; make its folder. Its owner alone may read it unless `mode` says otherwise."""
    files.make_folder(path.parent)
    files.write_bytes(path, content, mode=mode)
