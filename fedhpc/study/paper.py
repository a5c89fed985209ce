"""The paper's figures, and the tolerances of ours where it gives none."""

AUC_FEDERATED, AUC_LOCAL, AUC_CENTRALISED = 0.94, 0.81, 0.965
GAP = 0.025
"""Of the centralised AUC."""
EPSILON = 1.0
PARAMETERS, DENSE_MB, SENT_MB = 112_500_000, 450.0, 48.0

EARLY_TOLERANCE = 0.025
"""Ours, of the early-stage sensitivity: the paper says that it is kept."""
PACE, SLOW_AUC_TOLERANCE = 0.9, 0.005
"""Ours: rounds a minute with a slow hospital as a share of those without, and the AUC that this may cost."""
RANKED = 0.95
"""Ours: the share of runs in which a planted contribution is ranked right."""
STRESS_TOLERANCE = 0.02
"""Ours: the AUC that a corrupted hospital may cost."""
