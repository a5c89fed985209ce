"""Rank 0's office: sees updates, never an image."""
