"""Updates as few bytes: top-k with error feedback, quantisation, entropy-near coding. Knows numpy and bytes only."""
