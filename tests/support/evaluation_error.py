"""How far private metrics are from the exact ones: `python tests/support/evaluation_error.py RUN [DRAWS] [EPSILON]`.

Reads the shards of a finished run of this machine (inside the hospitals), and repeats its private evaluation with
fresh noise at every site. Prints one line a metric: exact value, bias, standard deviation, share of draws within 0.01,
and how many intervals hold the exact AUC.
"""

import sys
from pathlib import Path

import numpy as np

from fedhpc.models.device import prepare
from fedhpc.models.saved import load_model
from fedhpc.privacy.evaluation_plan import plan_evaluation
from fedhpc.privacy.noise import KeyStream
from fedhpc.records.metrics import Predictions, auc, f1_thresholds, metrics, score_histogram
from fedhpc.run.evaluation.curves import (
    EDGES,
    Answer,
    Law,
    OperatingPoints,
    Release,
    Thresholds,
    curves_of,
    final_question,
    interval_of,
    macro,
    metrics_of,
)
from fedhpc.site.data.open_site import open_site
from fedhpc.site.evaluation import predict
from fedhpc.site.release import Question, Weights, weighted_counts, with_noise


def predictions(run: Path) -> tuple[list[Predictions], list[Predictions]]:
    """Of the validation and the test split of every site."""
    saved = load_model(run / "model.pt")
    device = prepare(saved.config.runtime.model_copy(update={"device": "cpu"}), 0)
    val, test = [], []
    for site in saved.config.site_names:
        path = saved.config.data.shard_path(site)
        with open_site(path, site) as opened:
            samples = opened.samples(saved.backbone)
            val.append(predict(saved.network, samples, "val", device))
            test.append(predict(saved.network, samples, "test", device))
    return val, test


def main(run: Path, draws: int, epsilon: float) -> None:
    """Print the table."""
    config = load_model(run / "model.pt").config
    evaluation = config.evaluation.model_copy(update={"epsilon": epsilon, "bootstrap": 100})
    config = config.model_copy(update={"evaluation": evaluation})
    plan = plan_evaluation(config)
    if plan is None:
        sys.exit(f"{run}: a run without privacy: its metrics are exact")
    val, test = predictions(run)
    exact_val, exact_test = (np.sum([score_histogram(one) for one in split], axis=0) for split in (val, test))
    exact = metrics(exact_test, f1_thresholds(exact_val), config.evaluation.specificity)
    early = metrics(exact_val, f1_thresholds(exact_val), config.evaluation.specificity)["sensitivity_early"]
    tasks, unit, sites = exact_test.shape[0], config.privacy.unit, len(val)
    weights = Weights(tasks, plan.counted)
    law = Law(weights, weights.l1 / epsilon, sites)

    def asked(split: list[Predictions], question: Question) -> np.ndarray:
        counts = (weighted_counts(one, question, weights, unit) for one in split)
        return np.sum([with_noise(one, epsilon, weights, 1, KeyStream.fresh()) for one in counts], axis=0)

    found: list[tuple[float | None, ...]] = []
    held = 0
    for _ in range(draws):
        first = Question(stage=1, split="val", groups=3, edges=(EDGES,) * tasks)
        curves = curves_of(law, asked(val, first)[None], sites)
        if curves is None:
            continue
        thresholds = [Thresholds.of(curve, EDGES) for curve in curves]
        second = final_question(1, thresholds, 1)
        total = asked(test, second)
        one = metrics_of(law, Release(second, total, sites), OperatingPoints(thresholds, config.evaluation.specificity))
        ends = interval_of(law, Answer(second, total, {}), config)
        if one is None or ends is None:
            continue
        held += ends[0] <= (exact.auc or 0) <= ends[1]
        auc_val = macro([curve.auc for curve in curves])
        early_val = macro([curve.sensitivity_early(config.evaluation.specificity) for curve in curves])
        found.append((one.auc, auc_val, one["f1"], one["sensitivity"], early_val))
    print(f"{len(found)} of {draws} draws measured; the 95 % interval holds the exact AUC in {held}")
    exact_values = (exact.auc, auc(exact_val), exact["f1"], exact["sensitivity"], early)
    names = ("auc", "auc_val", "f1", "sensitivity", "sensitivity_early (val)")
    for name, truth, values in zip(names, exact_values, np.array(found, float).T, strict=True):
        error = values - (np.nan if truth is None else truth)
        print(
            f"{name:24} exact {truth if truth is None else round(truth, 4)}  bias {error.mean():+.4f}  "
            f"sd {error.std():.4f}  within .01: {(np.abs(error) <= 0.01).mean():.2f}  "
            f"95 % of errors below {np.quantile(np.abs(error), 0.95):.4f}"
        )


if __name__ == "__main__":
    more = sys.argv[2:]
    main(Path(sys.argv[1]), int(more[0]) if more else 100, float(more[1]) if len(more) > 1 else 1.0)
