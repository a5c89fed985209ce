"""The way in: `python run.py VERB ...`; see the README."""

import sys

from fedhpc.cli import main

if __name__ == "__main__":
    sys.exit(main())
