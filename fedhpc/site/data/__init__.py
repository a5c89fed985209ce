"""A site's data: the HDF5 shard, its checks, and what the training loop reads of it."""
