"""Importers of a hospital's archive: DICOM, NIfTI, NRRD and NumPy files to shards, de-identified by construction.

What may enter a shard is listed in `example.py`; nothing else of a file gets further than the process that reads it.
"""
