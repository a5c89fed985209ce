"""The end of a run: its models on all sites' test splits, interval, `summary.json`, `model.pt`, closing table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.config.schema import RunConfig
from fedhpc.models.saved import save_model
from fedhpc.models.task import Task
from fedhpc.models.vector import from_vector, parameter_count
from fedhpc.records.beside import newest_beside
from fedhpc.records.calibration import plain
from fedhpc.records.curves import ALL_SITES, CurvesFile
from fedhpc.records.environment import git_commit
from fedhpc.records.measured import Measured, mean_of
from fedhpc.records.metrics import BINS, METRICS, Metrics, unknown
from fedhpc.records.rounds import FLOAT32_BYTES, largest
from fedhpc.records.run_directory import RESTORE
from fedhpc.records.site_report import SiteReport
from fedhpc.records.summary import summary_of
from fedhpc.run.display import NamedSummary, closing, evaluation_lines
from fedhpc.run.evaluation import measure
from fedhpc.run.finished.model_card import model_card
from fedhpc.run.session import POOLED, Session, session_trust
from fedhpc.transport.collectives import run_on_all_ranks
from fedhpc.transport.messages import of_each
from fedhpc.util.arrays import F32
from fedhpc.util.files import PRIVATE, read_json, write_text
from fedhpc.util.text import wrapped

GLOBAL = "global"


@dataclass(frozen=True)
class Final:
    """One finished model measured on all sites' test splits, at rank 0 only; its name: a site's, or `global`."""

    name: str
    measured: Measured


def reports_of(session: Session, round: int | None = None) -> list[SiteReport]:
    """Each site's report, in site order, at rank 0; empty elsewhere. `round`: the one just done; None after the last.

    Raises:
        PayloadError: at rank 0, naming a site whose report is none.
    """
    config, pooled = session.config, session.config.mode == "centralised"
    mine = []
    for site in session.sites:
        learner = session.learners[0] if pooled else site
        ledger = (learner.name, learner.budget.ledger.head) if config.private else ("", "")
        account = learner.budget.ledger.account_head(site.name) if config.private else ""
        mine.append(
            SiteReport(site.name, learner.budget.epsilon(), learner.evaluator.epsilon(), *ledger, account).pack()
        )
    payloads = session.transport.gather(mine, "metrics", round)
    if session.transport.rank:
        return []

    def read(site: str, payload: bytes) -> SiteReport:
        return SiteReport.read(site, payload, (POOLED if pooled else site) if config.private else "")

    return of_each(payloads, config.site_names, "metrics", read)


@dataclass(frozen=True)
class Models:
    """The final models of a run, parameters f32[d].

    Attributes:
        by_name: the same at every rank: one, or one a site.
        own: with rewards, what each of this rank's sites has received instead, by site.
    """

    by_name: Mapping[str, F32]
    own: Mapping[str, F32] = field(default_factory=dict)

    def of(self, name: str) -> Callable[[str], F32]:
        """Return what gives each site, by its name, its model f32[d] of this name."""
        return lambda site: self.own.get(site, self.by_name[name])


def finish(session: Session, models: Models, records: Sequence[Mapping[str, Any]], stopped: str) -> None:
    """Measure the final models, then write and tell at rank 0."""
    measured = [(name, measure(session, models.of(name), number)) for number, name in enumerate(models.by_name)]
    run_on_all_ranks(session.transport, lambda: _save_own(session, models))
    reports = reports_of(session)
    if session.transport.rank:
        return
    config, directory = session.config, session.directory
    finals = [Final(name, found) for name, found in measured if found is not None]
    for final in finals:
        path = directory.site(final.name) / "model.pt" if config.mode == "local" else directory.model
        from_vector(session.place.model, models.by_name[final.name])
        facts = _facts(session, final.measured.thresholds.tolist())
        save_model(path, session.place.model, {**facts, "calibration": plain(final.measured.calibrations)})
    more = {**_more(session, finals, reports, stopped), **spent(reports, records), **_trust(session, records)}
    summary = summary_of(session.declared, records, more)
    summary["per_site"] = _per_site(session, summary["per_site"], finals, reports)
    directory.write_json(directory.curves, _curves(session, finals).json())
    directory.write_json(directory.summary, summary)
    calibrated = all(final.measured.calibrations for final in finals)
    write_text(directory.model_card, model_card(session.declared, session.task, summary, calibrated))
    own = NamedSummary(directory.path.name, summary)
    session.console.say(closing([own, *beside(directory.path, session.declared)]))
    for line in map(wrapped, evaluation_lines(config, summary)):
        session.console.say(line)
    session.console.say(wrapped(f"stopped: {stopped}. Results in {directory.path}"))


def _curves(session: Session, finals: Sequence[Final]) -> CurvesFile:
    """Each site's curves of the model that it uses, and those over all sites where there is one model."""
    config, by_name = session.config, {final.name: final for final in finals}
    curves = {site: by_name.get(site, finals[0]).measured.curves.get(site) for site in config.site_names}
    if len(finals) == 1:
        curves[ALL_SITES] = finals[0].measured.curves.get(ALL_SITES)
    noise = config.evaluation.epsilon if config.private_evaluation else None
    found = {name: one for name, one in curves.items() if one is not None}
    return CurvesFile(config.evaluation.specificity, noise, found)


def _facts(session: Session, thresholds: Sequence[int]) -> dict[str, Any]:
    """Return what it takes to build a model again."""
    config = session.declared.model_dump(mode="json")
    facts = {"config": config, **asdict(session.task), "f1_thresholds": list(thresholds)}
    before = [asdict(one) for one in session.before]
    return {**facts, "synthetic": session.synthetic, "before": before}


def _save_own(session: Session, models: Models) -> None:
    """Write what each site has been rewarded with, for itself; the thresholds of F1 are rank 0's: even odds here."""
    for name, params in models.own.items():
        from_vector(session.place.model, params)
        facts = _facts(session, [BINS // 2] * len(session.task.measured))
        save_model(session.directory.site(name) / "model.pt", session.place.model, facts, mode=PRIVATE)


def _per_site(
    session: Session,
    last: Mapping[str, Mapping[str, Any]],
    finals: Sequence[Final],
    reports: Sequence[SiteReport],
) -> dict[str, dict[str, Any]]:
    """{site: its metrics, what it has spent, bytes}. Local-only: of each site's own model, on its own test split."""
    by_name = {final.name: final for final in finals}
    out = {}
    for report in reports:
        final = by_name.get(report.site, finals[0])
        own = final.measured.per_site[report.site]
        found = {**last[report.site], **own.values, "n_test": own.n_images}
        found |= {"epsilon": report.epsilon, "evaluation_epsilon": report.evaluation_epsilon}
        if session.config.mode == "local":
            found["auc_all_sites"] = final.measured.overall.auc
        out[report.site] = found
    return out


def spent(reports: Sequence[SiteReport], records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the largest epsilons of all sites, also of one that was lost: its updates are in the model.

    Args:
        reports: of the sites that are there at the end.
        records: of all rounds, with what the sites had spent that were there.
    """
    return {
        key: largest([*(getattr(one, key) for one in reports), *(record.get(key) for record in records)])
        for key in ("epsilon", "evaluation_epsilon")
    }


def _more(session: Session, finals: Sequence[Final], reports: Sequence[SiteReport], stopped: str) -> dict[str, Any]:
    """What the records do not have. Several models (local-only): the mean over them, of the interval's ends too."""
    measured = [final.measured for final in finals]
    overall = [one.overall for one in measured]
    d = parameter_count(session.place.model)
    ends = [one.interval for one in measured if one.interval is not None]
    return {
        **{metric.key: mean_of([m[metric.key] for m in overall]) for metric in METRICS},
        "auc_val": mean_of([one.auc_val for one in measured]),
        "auc_ci95": np.mean(ends, axis=0).tolist() if len(ends) == len(measured) else None,
        "reasons": {key: value for one in measured for key, value in one.reasons.items()},
        **({"per_finding": _per_finding(session.task, overall)} if session.config.task == "multilabel" else {}),
        "stopped": stopped,
        "parameters": d,
        "dense_bytes_per_round": len(session.config.data.sites) * d * FLOAT32_BYTES,
        "git": git_commit(),
        "synthetic": session.synthetic,
        "continued_after": session.directory.continued(),
        "init_from": read_json(session.directory.initial, RESTORE) if session.directory.initial.exists() else None,
    }


def _per_finding(task: Task, overall: Sequence[Metrics]) -> dict[str, dict[str, float | None]]:
    """{finding: its metrics}; several models (local-only): the mean over them."""
    by_class = [one.by_class or (unknown().values,) * len(task.measured) for one in overall]
    return {
        name: {metric.key: mean_of([one[k][metric.key] for one in by_class]) for metric in METRICS}
        for k, name in enumerate(task.measured)
    }


def _trust(session: Session, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Against whom a secure sum has protected, in the least protected of all rounds, and what is left if that fails."""
    trust = session_trust(session)
    if trust is None:
        return {}
    levels = [str(record.get("protects_from_aggregator") or "none") for record in records]
    return trust.facts(levels)


def beside(here: Path, config: RunConfig) -> list[NamedSummary]:
    """Return the newest run of each other mode on the same data that lies next to the run at `here`."""

    def shown(folder: Path, summary: Mapping[str, Any]) -> NamedSummary:
        named = NamedSummary(folder.name, summary)
        closing([named])
        return named

    return newest_beside(here, config, shown)
