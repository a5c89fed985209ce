"""Command lines of run.py, one after the other in one process, with toys: `python -m tests.seams.with_toys FILE`.

FILE is JSON: {"toys": [module, ...], "commands": [[argument, ...], ...]}. Toys are put into
the tables before the config's schema is made of those. Prints the exit statuses as JSON, last.
"""

import importlib
import json
import sys
from pathlib import Path


def run(path: Path) -> list[int]:
    """Run the commands of the file; return their exit statuses."""
    asked = json.loads(path.read_text(encoding="utf-8"))
    for toy in asked["toys"]:
        importlib.import_module(f"tests.seams.{toy}").register()
    from fedhpc.cli.main import main

    return [main(command) for command in asked["commands"]]


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
