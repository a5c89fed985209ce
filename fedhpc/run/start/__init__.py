"""The start of a run: what all ranks agree on, who takes part, and the channel, network and ledgers that they open."""
