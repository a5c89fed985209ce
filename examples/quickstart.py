"""Train the smoke run for three rounds from Python, then read what it has left: `python examples/quickstart.py`.

Makes the small synthetic cohort in data/phantom-smoke at first use. Words `KEY=VALUE` behind the command override keys
of the config.
"""

import sys
from pathlib import Path

import fedhpc

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.yaml"


def main(overrides: list[str]) -> fedhpc.Run:
    """Train, or go on with what runs/quickstart holds, and print the result."""
    config = fedhpc.load_config(SMOKE, ["name=quickstart", "training.rounds=3", *overrides])
    run = fedhpc.train(config)
    for record in run.rounds:
        print(f"round {record['round']}: {record['bytes_up']} bytes sent by all hospitals together")
    print(f"AUC on the test images of all hospitals: {run.summary['auc']}, 95 % interval {run.summary['auc_ci95']}")
    print(f"epsilon spent for every training patient: {run.epsilon}")
    print(f"classes: {', '.join(run.model().task.classes)}")
    return run


if __name__ == "__main__":
    main(sys.argv[1:])
