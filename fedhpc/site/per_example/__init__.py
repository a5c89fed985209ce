"""Per-example gradients: the sum of clipped unit gradients in one forward and one backward pass."""
