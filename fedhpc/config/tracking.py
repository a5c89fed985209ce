"""The key `tracking`: where else rank 0 writes what rounds.jsonl has, for tools that a group uses already."""

from typing import Literal

Tracker = Literal["tensorboard", "mlflow"]
PACKAGES: dict[Tracker, str] = {"tensorboard": "tensorboardX", "mlflow": "mlflow"}
"""The package that writes each; both come with the extra `tracking`."""
