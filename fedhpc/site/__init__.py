"""Inside the hospital walls: the only code that may see an image or a label."""
