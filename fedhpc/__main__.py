"""`fedhpc COMMAND ...` and `python -m fedhpc COMMAND ...`: the same as `python run.py COMMAND ...`, from any folder."""

import os
import sys

# Read by OpenMP when torch is imported: a thread that waits must not spin, since other ranks may share its core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run() -> int:
    """Run the command line; report a missing package as a missing environment.

    Returns:
        the exit status.
    """
    try:
        from fedhpc.cli.main import main
        from fedhpc.util.output import guard_output

        guard_output()
        return main()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("fedhpc", "data_prep"):
            raise
        print(
            f"error: {sys.executable}: has no module {error.name}. Activate the environment first "
            "(`. .venv/bin/activate`), or make it: `sh setup.sh` [environment]",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(run())
