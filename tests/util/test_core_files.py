"""A crash leaves no memory behind."""

import resource
import subprocess
import sys
from pathlib import Path

CRASH = """
import os
from fedhpc.cli.main import main
try:
    main(["--version"])
except SystemExit:
    os.abort()
"""


def test_crash_leaves_no_core_file(tmp_path: Path) -> None:
    """Whatever `ulimit -c` allowed."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]

    def allow() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    done = subprocess.run(
        [sys.executable, "-c", CRASH], cwd=tmp_path, preexec_fn=allow, capture_output=True, timeout=60, check=False
    )
    assert done.returncode < 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_limit_is_one_byte() -> None:
    """At 0 the kernel still gives the memory to the program that `core_pattern` may name."""
    program = (
        "import resource; from fedhpc.util.core_files import forbid_core_files as f; f(); f(); "
        "print(*resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    soft, hard = map(int, done.stdout.split())
    assert soft == min(1, hard) or (soft, hard) == (1, -1)
