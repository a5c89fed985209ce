"""A study: the whole evaluation as one sweep over unlike cells, and what comes of it beside the paper's claims."""
