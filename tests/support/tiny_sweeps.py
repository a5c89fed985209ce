"""The config of a sweep over a cohort as small as it can be."""

from pathlib import Path
from typing import Any

import yaml

from fedhpc.config.problems import problems_message
from fedhpc.errors import ConfigError
from fedhpc.sweep.config import Sweep, expand

SITES = {"site1": 17, "site2": 13, "site3": 8, "site4": 6}


def tree_of(folder: Path, **more: Any) -> dict[str, Any]:
    """A sweep's config: a round of the smallest cohort, at two epsilons (one of them none) and two densities."""
    return {
        "name": "tiny",
        "data": {
            "shards": f"{folder}/data/{{site}}.h5",
            "phantom": {"images": 160, "image_size": 32, "difficulty": 0.0},
            "sites": [{"name": name, "weight": weight} for name, weight in SITES.items()],
        },
        "training": {"rounds": 2, "local_epochs": 1, "batch_size": 16},
        "privacy": {"sample_rate": 1.0},
        "evaluation": {"bootstrap": 100},
        "runtime": {"device": "cpu"},
        "grid": {"privacy.epsilon": [8.0, None], "exchange.density": [0.1, 1.0]},
        "baselines": {
            "centralised": {"mode": "centralised", "privacy": "off"},
            "local": {"mode": "local", "privacy": "off"},
        },
        **more,
    }


def write_sweep(folder: Path, **more: Any) -> Path:
    """The config file of `tree_of`."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree_of(folder, **more), sort_keys=False), encoding="utf-8")
    return path


def load_sweep(path: Path, overrides: list[str]) -> Sweep:
    """The sweep of a config without problems.

    Raises:
        ConfigError: with every problem of every trial, one a line.
    """
    expansion = expand(path, overrides)
    if expansion.problems:
        raise ConfigError(problems_message(path, expansion.problems))
    return expansion.sweep
