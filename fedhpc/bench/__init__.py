"""`run.py bench`: the project's own benchmarks, each beside something that is run in the same process."""
