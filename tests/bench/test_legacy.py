"""`bench legacy` of a network: what training alone is."""

from pathlib import Path

import pytest

from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.api import load_config
from fedhpc.bench.legacy import alone_config

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "legacy_scanner_network.yaml"


@pytest.mark.parametrize(("local_epochs", "more"), [(1, 10), (0.25, 40), (3, 4)])
def test_alone_has_the_epochs_of_both(local_epochs: float, more: int) -> None:
    sets = ["server.optimizer=fedavgm", f"training.local_epochs={local_epochs}", "personalisation.epochs=10"]
    config = load_config(CONFIG, sets)
    alone = alone_config(config)
    assert alone.training.rounds == config.training.rounds + more
    assert (alone.mode, alone.server, alone.private) == ("local", ServerSgd(), False)
    assert alone.personalisation.method == "none"
