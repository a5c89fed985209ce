"""Inside a hospital: the only code that may see an image or a label."""
