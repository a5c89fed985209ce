"""One training run at one rank, from its config to its summary."""
