"""Keep a network that is rebuilt from somebody else's `model.pt` off the network, and from starting programs.

A network of `model.monai` is built with `model.args`, which may hold an address that its constructor loads weights
from. Such a file alone would then tell another host who uses the model, and when.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

CONNECTIONS = ("connect", "getaddrinfo", "gethostbyname", "sendto", "sendmsg")
PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen")
REFUSED = frozenset((*(f"socket.{one}" for one in CONNECTIONS), "urllib.Request", *PROGRAMS))
"""Audit events of the interpreter (PEP 578), raised before what they are named after is done."""


class _Guard:
    """The audit hook of this process. One that was added stays, so that it acts within `offline` only."""

    def __init__(self) -> None:
        self.added, self.depth = False, 0

    def __call__(self, event: str, _: tuple[object, ...]) -> None:
        if self.depth and event in REFUSED:
            raise PermissionError(f"{event} is not allowed while a network is rebuilt from model.pt")


_GUARD = _Guard()


@contextmanager
def offline() -> Iterator[None]:
    """Refuse, in all threads of this process, connections and programs that Python code asks for inside.

    No sandbox: compiled code that does not go through the interpreter is not seen.
    """
    if not _GUARD.added:
        sys.addaudithook(_GUARD)
        _GUARD.added = True
    _GUARD.depth += 1
    try:
        yield
    finally:
        _GUARD.depth -= 1
