"""The end of a run and what comes after it: summary, model card, and the commands that use a finished model."""
