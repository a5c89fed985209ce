"""Run under mpirun: several commands of run.py one after the other, so that their ranks import torch once.

    python -m tests.mpi.several OUT COMMANDS

COMMANDS is a file with a JSON object of name -> arguments of run.py. Rank 0 writes exit status, stdout and stderr to
OUT/<name>.json.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from fedhpc.cli.main import main

if __name__ == "__main__":
    folder, commands = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    for name, arguments in commands.items():
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
        if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
            said = {"returncode": status, "stdout": out.getvalue(), "stderr": err.getvalue()}
            (folder / f"{name}.json").write_text(json.dumps(said), encoding="utf-8")
