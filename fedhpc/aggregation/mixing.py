"""Nearest-neighbour mixing (Allouah et al. 2023, "Fixing by Mixing", Algorithm 2): done before any robust rule.

Each update is replaced by the mean of the n - f updates nearest to it, itself among them. Hospitals that differ then
look more alike, which is what the proofs of the rules need.
"""

import numpy as np

from fedhpc.util.arrays import F64


def distances(updates: F64) -> F64:
    """Return the Euclidean distances between all pairs of n updates, float64[n, n]; exact zeros on the diagonal."""
    n = len(updates)
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            out[i, j] = out[j, i] = np.linalg.norm(updates[i] - updates[j])
    return out


def mixed(updates: F64, faulty: int) -> F64:
    """Return the updates float64[n, d] after mixing; of equally near ones the site with the smaller index counts.

    >>> mixed(np.array([[1.0], [4.0], [9.0]]), faulty=1).tolist()
    [[2.5], [2.5], [6.5]]
    """
    nearest = np.argsort(distances(updates), axis=1, kind="stable")[:, : len(updates) - faulty]
    return np.stack([updates[np.sort(chosen)].mean(axis=0) for chosen in nearest])
