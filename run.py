"""The way in: `python run.py COMMAND ...`; see the README."""

import sys

from fedhpc.__main__ import run

if __name__ == "__main__":
    sys.exit(run())
