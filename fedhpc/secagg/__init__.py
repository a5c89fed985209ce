"""Secure aggregation (Bonawitz et al. 2017): the aggregator learns a sum of integer vectors and no more of them."""
