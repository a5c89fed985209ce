"""What a run leaves on disk: its directory, checkpoints, one record a round, the summary."""
