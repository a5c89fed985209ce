"""How a shard was de-identified, as codes of DICOM's Context Group 7050 (PS3.16) and the edition of PS3.15 Annex E."""

BASIC_PROFILE = "113100"
CLEAN_GRAPHICS = "113103"
CLEAN_STRUCTURED = "113104"
CLEAN_DESCRIPTORS = "113105"
EDITION = "PS3.15 2024c"

METHOD = f"{BASIC_PROFILE},{CLEAN_GRAPHICS},{CLEAN_STRUCTURED},{CLEAN_DESCRIPTORS}; {EDITION}"
"""No attribute of a file is kept but its modality; overlays, structured content and descriptors are never read into a
shard. Not claimed: 113101 (clean pixel data), since signs in headers find the usual burned-in text, not all of it, and
113102 (clean recognizable visual features), since a head's outline stays in its slices."""
