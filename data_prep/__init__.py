"""Importers that turn images into shards, and the built-in phantom cohort."""
