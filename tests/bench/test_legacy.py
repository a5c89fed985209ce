"""`bench legacy` of a network: what training alone is."""

from pathlib import Path

import pytest

from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.api import load_config
from fedhpc.bench.legacy import alone_config

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "legacy_scanner_network.yaml"


@pytest.mark.parametrize(
    ("local_epochs", "rounds", "alone_rounds"), [(1, 20, 30), (0.25, 40, 20), (0.25, 41, 21), (3, 5, 9)]
)
def test_alone_has_the_epochs_of_both(local_epochs: float, rounds: int, alone_rounds: int) -> None:
    sets = [f"training.local_epochs={local_epochs}", f"training.rounds={rounds}", "personalisation.epochs=10"]
    alone = alone_config(load_config(CONFIG, sets))
    assert alone.training.rounds == alone_rounds
    assert alone.training.momentum == 0.9
    assert (alone.mode, alone.server, alone.private) == ("local", ServerSgd(), False)
    assert alone.personalisation.method == "none"
