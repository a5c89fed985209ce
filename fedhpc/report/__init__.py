"""One page about a sweep or about several runs: what was asked, what came out, what failed. Sees results, no image."""
