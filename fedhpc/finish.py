"""The end of a run: its models on all sites' test splits, interval, `summary.json`, `model.pt`, closing table."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedhpc.console import closing
from fedhpc.errors import InputError
from fedhpc.exchange.update import F32, pack_arrays, unpack_arrays
from fedhpc.metrics import F64, bootstrap_aucs, interval95
from fedhpc.models import from_vector, parameter_count, save_model
from fedhpc.records import (
    FLOAT32_BYTES,
    OUTSIDE_GUARANTEE,
    Measured,
    SiteReport,
    data_digest,
    mean_of,
    measure,
    summary_of,
)
from fedhpc.rundir import RESTORE, RunDirectory
from fedhpc.runtime import git_commit
from fedhpc.session import Session
from fedhpc.sum_identities import trust_model
from fedhpc.util.files import read_json

GLOBAL = "global"


@dataclass(frozen=True)
class Final:
    """One finished model measured on all sites' test splits, at rank 0 only.

    `aucs` are its bootstrap resamples; `epsilons` what each site has spent by its ledger, replayed rounds included.
    """

    measured: Measured
    aucs: F64
    epsilons: Mapping[str, float | None]


def reports_of(session: Session, params_of: Callable[[str], F32], round: int | None = None) -> list[SiteReport]:
    """Each site's report on the model that `params_of` gives for its name: all of them, in site order, at rank 0.

    `round`: the one just done; None after the last.
    """
    mine = []
    pooled = session.config.mode == "centralised"
    for site in session.sites:
        with site.failing(f"{'the end' if round is None else f'round {round}'}: evaluation failed"):
            measured = site.evaluate(params_of(site.name))
        learner = session.learners[0] if pooled else site
        ledger = (learner.name, learner.ledger.head) if session.config.private else ("", "")
        mine.append(SiteReport(site.name, measured["val"], measured["test"], learner.epsilon(), ledger).pack())
    return [SiteReport.unpack(payload) for payload in session.transport.gather(mine, "metrics", round)]


def finish(session: Session, models: Mapping[str, F32], records: Sequence[Mapping[str, Any]], stopped: str) -> None:
    """Measure the final `models` (the same at every rank: one, or one a site), then write and tell at rank 0."""
    measured = {name: _final(session, params) for name, params in models.items()}
    finals = {name: final for name, final in measured.items() if final is not None}
    if session.transport.rank:
        return
    config, directory = session.config, session.directory
    for name, final in finals.items():
        path = directory.site(name) / "model.pt" if config.mode == "local" else directory.model
        from_vector(session.place.model, models[name])
        facts = {
            "config": config.model_dump(mode="json"),
            **asdict(session.task),
            "f1_thresholds": final.measured.thresholds.tolist(),
        }
        save_model(path, session.place.model, facts)
    summary = summary_of(config, records, _more(session, finals, stopped))
    for final in finals.values():
        for site, spent in final.epsilons.items():
            summary["per_site"][site]["epsilon"] = spent
    if config.mode == "local":
        for name, final in finals.items():
            summary["per_site"][name]["auc_all_sites"] = final.measured.overall.auc
    directory.write_json(directory.summary, summary)
    session.console.say(closing(_beside(session, summary)))
    if config.private:
        session.console.say(
            f"epsilon protects the training patients; {', '.join(OUTSIDE_GUARANTEE)} "
            "are measured on validation and test patients, whom it does not protect"
        )
    session.console.say(f"stopped: {stopped}. Results in {directory.path}")


def _final(session: Session, params: F32) -> Final | None:
    reports = reports_of(session, lambda _: params)
    mine = [pack_arrays({"stack": site.resample(params)}) for site in session.sites]
    stacks = session.transport.gather(mine, "metrics")
    if session.transport.rank:
        return None
    aucs = bootstrap_aucs(unpack_arrays(payload)["stack"].astype(np.uint16, copy=False) for payload in stacks)
    return Final(measure(reports, session.config.evaluation.specificity), aucs, {r.site: r.epsilon for r in reports})


def _more(session: Session, finals: Mapping[str, Final], stopped: str) -> dict[str, Any]:
    """What replaces or joins the last record's figures. Several models (local-only): the mean over them."""
    overall = [final.measured.overall for final in finals.values()]
    d = parameter_count(session.place.model)
    return {
        "auc": mean_of([m.auc for m in overall]),
        "auc_ci95": interval95(np.mean([final.aucs for final in finals.values()], axis=0)),
        "f1": mean_of([m.f1 for m in overall]),
        "sensitivity": mean_of([m.sensitivity for m in overall]),
        "sensitivity_early": mean_of([m.sensitivity_early for m in overall]),
        "epsilon": max(
            (e for final in finals.values() for e in final.epsilons.values() if e is not None), default=None
        ),
        "stopped": stopped,
        "parameters": d,
        "dense_bytes_per_round": len(session.config.data.sites) * d * FLOAT32_BYTES,
        "git": git_commit(),
        "continued_after": session.directory.continued(),
        "init_from": read_json(session.directory.initial, RESTORE) if session.directory.initial.exists() else None,
        **_trust(session),
    }


def _trust(session: Session) -> dict[str, Any]:
    """Against whom a secure sum has protected, and what is left if that fails."""
    plan = session.place.plan
    if session.grid is None or plan is None:
        return {}
    return trust_model(session.config, plan, session.transport.size).facts()


def _beside(session: Session, summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """This run, and the newest run of each other mode on the same data that lies next to it."""
    here = session.directory.path
    found: dict[str, tuple[float, str, Mapping[str, Any]]] = {}
    for path in sorted(here.resolve().parent.glob("*/summary.json")):
        try:
            other, changed_s = RunDirectory(path.parent).read_summary(), path.stat().st_mtime
        except (InputError, OSError) as error:
            print(f"WARNING: left out of the comparison: {error}", file=sys.stderr)
            continue
        same = other.get("data") == data_digest(session.config) and other["mode"] != session.config.mode
        if same and changed_s > found.get(other["mode"], (0.0,))[0]:
            found[other["mode"]] = (changed_s, path.parent.name, other)
    return [(here.name, summary), *((name, other) for _, name, other in found.values())]
