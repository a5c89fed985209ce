"""`run.py watch`: how a run, a sweep or a study goes, from its files alone, so that it costs the run nothing."""
