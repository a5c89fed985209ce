"""MODEL_CARD.md of a finished run: what the model is for, whence it comes, how good and how private it is.

After Mitchell et al. 2019, "Model Cards for Model Reporting". Made of config and summary alone: both are public.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhpc import __version__
from fedhpc.config.harmonise import chain_text
from fedhpc.config.schema import RunConfig
from fedhpc.models.task import Task
from fedhpc.privacy.evaluation_plan import counts_note
from fedhpc.records.metrics import METRICS
from fedhpc.util.html import rendered
from fedhpc.util.text import count_of, fixed

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
MODES = {"federated": "federated training", "centralised": "training on pooled images", "local": "a model a site"}
KINDS = {"multiclass": "one of the classes", "multilabel": "several findings, each there or not"}


def model_card(config: RunConfig, task: Task, summary: Mapping[str, Any], calibrated: bool) -> str:
    """Return the card as Markdown.

    Args:
        config: of the run, with all declared sites.
        task: of the model.
        summary: what summary.json holds (public).
        calibrated: whether the model has a calibration.
    """
    per_site = summary["per_site"]
    return rendered(
        TEMPLATE,
        name=config.name,
        what=_what(config, summary),
        version=__version__,
        digest=summary["config_digest"],
        git=summary.get("git"),
        warning=_warning(summary),
        task=f"{KINDS[task.kind]}: {', '.join(task.classes)}",
        shape=" x ".join(map(str, task.image_shape)),
        harmonise=chain_text(config.harmonise),
        own_chains={one.name: chain_text(one.harmonise) for one in config.data.sites if one.harmonise},
        source=_source(config, summary),
        released_counts=any(one.get("n_test") for one in per_site.values()),
        counts_note=counts_note(config),
        sites=[
            {
                "name": site.name,
                "weight": "not declared" if site.weight is None else site.weight,
                "modality": site.modality or "not declared",
                "n_test": per_site.get(site.name, {}).get("n_test") or "-",
            }
            for site in config.data.sites
        ],
        absent=", ".join(summary.get("absent") or {}),
        measured=_measured(config, summary),
        specificity=f"{config.evaluation.specificity:g}",
        metrics=[metric.name for metric in METRICS],
        rows=_rows(summary),
        told=f"{_interval(summary)} {_worst(per_site)}".strip(),
        reasons=[f"{key}: {why}." for key, why in (summary.get("reasons") or {}).items()],
        privacy=list(_privacy(config, summary)),
        start=_start(config, summary),
        calibrated="" if calibrated else "; this run has released none that would tell, so there is none",
        limits=list(_limits(config, summary, calibrated)),
    )


def _what(config: RunConfig, summary: Mapping[str, Any]) -> str:
    network = config.model.label if config.model.checked else config.model.name
    named = f"A network `{network}`"
    if config.model.backbone:
        named = f"A head on the frozen backbone `{config.model.backbone}`"
    how = f" by {config.algorithm.name}" if config.mode == "federated" else ""
    return (
        f"{named} with {summary['parameters']:,} trained parameters: {MODES[config.mode]}{how}, "
        f"{count_of(len(config.data.sites), 'site')}, {count_of(summary['rounds'], 'round')} ({summary['stopped']})."
    )


def _warning(summary: Mapping[str, Any]) -> str:
    if summary.get("insecure_noise_seed"):
        return "INSECURE: privacy.noise_seed was set. Whoever knows it can remove the noise: no privacy is guaranteed."
    if summary.get("stress"):
        return "A stress test: sites were corrupted on purpose. Not for use."
    return ""


def _source(config: RunConfig, summary: Mapping[str, Any]) -> str:
    if summary.get("synthetic", config.data.phantom is not None):
        return "**Synthetic patients of the built-in cohort: none of them exists, and nothing is a medical result.**"
    return "Shards that the sites have prepared themselves."


def _measured(config: RunConfig, summary: Mapping[str, Any]) -> str:
    if config.private_evaluation:
        spent = fixed(summary.get("evaluation_epsilon"))
        return f"from counts released with noise (epsilon {spent} for evaluation)"
    return "from exact score histograms" + (", which the guarantee below does not cover" if config.private else "")


def _rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = {"all sites": summary, **summary["per_site"]}
    return [
        {"name": name, "values": [fixed(found.get(metric.key)) for metric in METRICS]} for name, found in parts.items()
    ]


def _interval(summary: Mapping[str, Any]) -> str:
    ends = summary.get("auc_ci95")
    if ends:
        return f"95 % interval of the AUC: {ends[0]:.3f} to {ends[1]:.3f}."
    return "No AUC is known of all sites together." if summary.get("auc") is None else "The AUC has no interval."


def _worst(per_site: Mapping[str, Mapping[str, Any]]) -> str:
    known = {site: found["auc"] for site, found in per_site.items() if found.get("auc") is not None}
    if not known:
        return "No AUC is known of any site alone."
    site = min(known, key=lambda name: (known[name], name))
    unknown = f"; of {len(per_site) - len(known)} sites none is known" if len(known) < len(per_site) else ""
    return f"Worst site: {site}, AUC {known[site]:.3f}{unknown}."


def _privacy(config: RunConfig, summary: Mapping[str, Any]) -> Iterator[str]:
    if not config.private:
        yield "None: `privacy: off`. The model may give away images and patients that it was trained on."
        return
    unit, delta = summary.get("unit"), summary.get("delta")
    yield (
        f"Differential privacy for each {unit}: training is (epsilon {fixed(summary.get('epsilon'))}, delta {delta:g})-"
        f"private at the site that has spent most, by DP-SGD inside each site. Neighbours differ by one {unit}."
    )
    spent = {site: found.get("epsilon") for site, found in summary["per_site"].items()}
    yield f"Spent on training by site: {', '.join(f'{site} {fixed(value)}' for site, value in spent.items())}."
    if config.private_evaluation:
        yield f"Evaluation is charged apart: epsilon {fixed(summary.get('evaluation_epsilon'))} in all."
    if summary.get("absent"):
        yield (
            "A site that was lost may have begun one more round than the records tell of: its own ledger knows. No "
            f"site spends more than what the run was to cost, epsilon {config.privacy.epsilon:g}."
        )
    yield from _earlier_runs(config, summary)
    outside: Sequence[str] = summary.get("outside_guarantee") or []
    if outside:
        yield f"Outside of the guarantee: {', '.join(outside)}. {summary.get('outside_guarantee_means') or ''}".strip()
    yield "It says what the released model and records give away about one such unit, not what a shard or a score does."


def _earlier_runs(config: RunConfig, summary: Mapping[str, Any]) -> Iterator[str]:
    """Say that a model holds what the runs gave away that it was made from."""
    start = summary.get("init_from")
    if start:
        known = start.get("epsilon") is not None
        cost = f"epsilon {start['epsilon']:g}, delta {start['delta']:g}" if known else "an epsilon that is not known"
        yield (
            f"It starts from the model of run {start.get('run')}, which was to cost {cost}: about a patient of both "
            "runs it gives away as much as both together. Add their epsilons and deltas, and those of the runs before."
        )
    if config.model.backbone and Path(config.model.backbone).suffix == ".pt":
        yield "Its backbone was trained by another run: about a patient of that run its epsilon and delta come on top."


def _start(config: RunConfig, summary: Mapping[str, Any]) -> str:
    parts = []
    if config.model.backbone:
        parts.append("a frozen backbone that saw none of their patients, unless it is the model.pt of such a run")
    if config.data.public_reference:
        parts.append("public reference images for the features")
    if summary.get("init_from"):
        parts.append("from the parameters of an earlier run")
    return f"; {'; '.join(parts)}" if parts else ""


def _limits(config: RunConfig, summary: Mapping[str, Any], calibrated: bool) -> Iterator[str]:
    yield "Tested on patients of the hospitals that trained it, not of others."
    if calibrated:
        yield (
            "Probabilities hold at the share of positives among the validation patients: at another share they are "
            "wrong, though their order stays."
        )
    if summary.get("auc_ci95") and summary["auc_ci95"][1] - summary["auc_ci95"][0] > 0.1:
        yield "The interval of the AUC is wider than 0.1: too few test patients, or too much noise."
    if config.mode == "local":
        yield "Each site has a model of its own (sites/SITE/model.pt): the row of all sites is a mean."
    if summary.get("absent"):
        yield "Not all declared sites took part to the end."
    if summary.get("late"):
        counts = ", ".join(f"{site} in {count}" for site, count in summary["late"].items())
        yield f"Updates were late (schedule.policy: deadline): of {counts} of {summary['rounds']} rounds."
    if summary["stopped"] not in ("finished",):
        yield f"The run stopped before its last round: {summary['stopped']}."
    yield "Image sizes, windows and slices must be those of the import; the model cannot check them all."
