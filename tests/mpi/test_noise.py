"""The noise of four ranks: under one fixed seed and from the operating system, no two parts of it are alike."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.mpi
PROGRAM = Path(__file__).with_name("noise.py")
SIZE = 800
INDEPENDENT = 6.2 / SIZE**0.5
"""No correlation of two independent rows is beyond it: of the 376 pairs that are looked at one is in 5 million runs."""


def test_four_ranks_add_different_noise_even_under_one_seed(mpirun: Callable[..., tuple[int, str, str]]) -> None:
    """Opacus under one torch seed would give all ranks the same noise, which the difference of two updates removes."""
    status, out, err = mpirun(4, [PROGRAM, "[7, 7, null]"], fresh=True)
    assert status == 0, err
    seeded, again, fresh = (np.array(rows).reshape(-1, SIZE) for rows in json.loads(out))  # a row a rank, round, step
    np.testing.assert_array_equal(seeded, again)
    for rows in (seeded, fresh):
        assert rows.shape == (16, SIZE)
        assert rows.std() == pytest.approx(1.0, abs=0.05)
        correlation = np.corrcoef(rows)[~np.eye(16, dtype=bool)]
        assert np.abs(correlation).max() < INDEPENDENT
    assert np.abs(np.corrcoef(seeded, fresh)[:16, 16:]).max() < INDEPENDENT
