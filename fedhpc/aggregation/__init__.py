"""Updates of many sites become one. Sees updates, never an image."""
