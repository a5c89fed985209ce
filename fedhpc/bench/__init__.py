"""The project's own benchmarks (`run.py bench ...`): each gives a ratio to something run beside it."""
