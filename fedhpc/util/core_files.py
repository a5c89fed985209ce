"""No core files: the memory of a rank holds images, keys and noise, and a crash would write them beside the run."""

import resource

ABORTED_BYTES = 1
"""Below one page no file is written; and at 1, unlike 0, Linux does not give the memory to the program that
`core_pattern` may name either (fs/coredump.c, `RLIMIT_CORE is set to 1`)."""


def forbid_core_files() -> None:
    """Let this process, and those that it starts, leave no core file, whatever `ulimit -c` was."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else ABORTED_BYTES, hard))
