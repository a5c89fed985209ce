"""The mean of the last models: by hand, and through a resume."""

import numpy as np
import pytest

from fedhpc.aggregation.iterate_average import IterateAverage

MODELS = [np.array([t, -t], np.float32) for t in range(1, 11)]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 10.0), (0.1, 10.0), (0.5, 8.0), (1.0, 5.5)])
def test_mean_of_the_last_share(share: float, expected: float) -> None:
    average = IterateAverage.over_last(share, 10)
    for round, params in enumerate(MODELS, 1):
        average = average.after(round, params)
    assert average.released(MODELS[-1]).tolist() == [expected, -expected]


def test_before_its_first_round_the_current_model_is_released() -> None:
    average = IterateAverage.over_last(0.5, 10)
    for round, params in enumerate(MODELS[:5], 1):
        average = average.after(round, params)
        assert average.released(params) is params
