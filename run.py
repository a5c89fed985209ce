"""The way in: `python run.py VERB ...`; see the README."""

import os
import sys

# Read by OpenMP when torch is imported: a thread that waits must not spin, since other ranks may share its core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fedhpc.cli import main

if __name__ == "__main__":
    sys.exit(main())
