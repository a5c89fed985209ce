"""What a config will cost, as text: the facts of `fedhpc.cli.privacy_config` as lines and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.util.text import fitted, fixed, table, wrapped

ROUND_COLUMNS = 8
ALL_RUNS = (
    "PRV, RDP: epsilon of the rounds of this run; evaluation: of what it releases of validation and test patients; all "
    "runs: of the patient who has spent most, with this run and those before in the site ledgers seen from here"
)


def config_text(facts: Mapping[str, Any]) -> str:
    """Return the text of one config, by the facts of `fedhpc.cli.privacy_config`."""
    cap = "not set" if facts["lifetime_epsilon"] is None else f"{facts['lifetime_epsilon']:g}"
    head = [
        f"{facts['name']}: epsilon {facts['epsilon_target']:g} at delta {facts['delta']:g} per {facts['unit']}, "
        f"trust: {facts['trust']}",
        f"{facts['mechanism']} noise multiplier {facts['noise_multiplier']:.3f}, clip norm {facts['clip_norm']:g}, "
        f"sample rate {facts['sample_rate']:g}, {facts['rounds']} rounds of {facts['steps_per_round']} steps; "
        f"privacy.lifetime_epsilon {cap}",
        *_feature_mean(facts),
        *_unmasked(facts),
        *([facts["bound_note"]] if facts["bound_note"] else []),
        *([facts["schedule"]] if facts["schedule"] else []),
    ]
    tail = [
        f"verdict: {facts['verdict'] or 'not known before the backbone is built'}.",
        "exchange.density changes what is sent, after the noise: it costs and saves no epsilon.",
    ]
    return "\n".join(
        [
            wrapped("\n".join(head)),
            "",
            _sites_table(facts["sites"]),
            wrapped(ALL_RUNS),
            "",
            *_rounds_tables(facts["by_round"]),
            "",
            wrapped("The same target with one key set otherwise (noise over signal: smaller learns better):"),
            _others_table(facts),
            wrapped("\n".join(tail)),
        ]
    )


def _sites_table(sites: Sequence[Mapping[str, Any]]) -> str:
    """A row a site; with its noise multiplier where sites have different ones."""
    unequal = len({s["noise_multiplier"] for s in sites}) > 1
    noise = ("noise",) if unequal else ()
    rows: list[tuple[str, ...]] = [
        ("site", "weight", "batch", *noise, "PRV", "RDP", "evaluation", "runs before", "all runs")
    ]
    for s in sites:
        epsilons = (fixed(s[key]) for key in ("epsilon_prv", "epsilon_rdp", "epsilon_evaluation"))
        work = (f"{s['expected_batch']:.1f}", *((fixed(s["noise_multiplier"]),) if unequal else ()))
        after = s["spent_after"].removeprefix("epsilon ")
        rows.append((s["site"], str(s["weight"]), *work, *epsilons, str(s["runs_before"]), after))
    return fitted(rows)


def _rounds_tables(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """As many columns a table as a terminal shows."""
    tables = []
    for start in range(0, len(rounds), ROUND_COLUMNS):
        shown = rounds[start : start + ROUND_COLUMNS]
        epsilons = (fixed(one["epsilon"]) for one in shown)
        tables.append(table([("after round", *(str(one["round"]) for one in shown)), ("epsilon", *epsilons)]))
    return tables


def _feature_mean(facts: Mapping[str, Any]) -> list[str]:
    noise = facts["feature_mean_noise"]
    if noise is None:
        return []
    return [
        f"before the first round: one release of the mean of the features, noise multiplier {noise:g}; it is charged"
    ]


def _unmasked(facts: Mapping[str, Any]) -> list[str]:
    left = facts["epsilon_if_unmasked"]
    if left is None:
        return []
    return [
        f"if the aggregator sees one site's vectors without masks (more sites collude than privacy.colluding_sites, or "
        f"it departs from the protocol where keys are not certified): epsilon {fixed(left)}, by that site's own noise"
    ]


def _others_table(facts: Mapping[str, Any]) -> str:
    rows = [("key", "steps", "noise multiplier", "noise over signal")]
    as_is = {"as it is": "", **{key: facts[key] for key in ("steps", "noise_multiplier", "noise_per_signal")}}
    for other in (as_is, *facts["other_rounds"], *facts["other_sample_rates"]):
        (key, value), *_ = other.items()
        label = f"{key}={value}" if value != "" else key
        noise, signal = other["noise_multiplier"], other["noise_per_signal"]
        cells = ("out of reach", "-") if noise is None else (fixed(noise), f"{signal:.5f}")
        rows.append((label, str(other["steps"]), *cells))
    return fitted(rows)
