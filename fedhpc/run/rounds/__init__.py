"""The rounds of a run: the loop over them, its terms, what is saved after each one, and where a run goes on."""
