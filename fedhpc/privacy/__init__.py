"""Privacy accounting: plans, accountants and ledgers. Sees no image, no label and no shard."""
