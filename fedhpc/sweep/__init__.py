"""Sweeps: many configs of one kind as one SLURM array, or a few at a time on one machine.

A sweep is its directory (`fedhpc.sweep.directory`): what is to be done, who does it and how it ended are plain files,
so that no process has to stay behind on a login node.
"""
