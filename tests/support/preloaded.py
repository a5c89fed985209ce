"""Python programs that start with their imports done: most of what a short MPI program costs is importing torch.

`serve` imports what every rank imports (never `mpi4py.MPI`, whose import starts MPI) and then forks a process for
each request. `start` stands in for `python` under mpirun: it sends its arguments, folder, environment and standard
streams to the server, passes signals on, and ends as the forked process ends, by the same status or signal. The forked
process does what `python ARGUMENTS` would do; mpirun, MPI, TLS, files and signals are the real ones. A forked process
dies with its `start`, so that killing what mpirun started kills the rank. `serve-inside` serves in the namespaces of
other processes as well: the imports are those of the process that it is forked from.

What must differ between ranks at random (hash seeds, noise) is tested with fresh interpreters: `mpirun(fresh=True)`.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGHUP)
MOST_BYTES = 1 << 20
STANDS_FOR = "for-"
"""The beginning of the name of a `start`, before the process id that it stands for. SLURM misreads a space."""
STAND_IN = "FEDHPC_TESTS_PYTHON"
"""What a forked process takes for `sys.executable`, so that the programs that it starts are forked as well."""


def start(address: str, arguments: list[str]) -> int:
    """Run `python ARGUMENTS` in a process that the server forks; return its status, or die of its signal."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    request = json.dumps({"arguments": arguments, "cwd": os.getcwd(), "env": dict(os.environ)}).encode()
    socket.send_fds(connection, [request], [0, 1, 2])
    pid = int(connection.recv(64))
    # For those who look for the process that is the rank: tests.support.fault_tolerant.
    with open("/proc/self/comm", "w", encoding="ascii") as name:
        name.write(f"{STANDS_FOR}{pid}")
    for number in PASSED_ON:
        signal.signal(number, lambda got, _: _send(pid, got))
    status = os.waitstatus_to_exitcode(int(connection.recv(64)))
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    return status


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def serve(address: str) -> tuple[list[str], dict[str, object]]:
    """Serve until the parent dies. Returns in a forked process alone, with its request."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{address}.new")
    listener.listen(64)
    os.set_blocking(listener.fileno(), False)
    parent = os.getppid()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    events = selectors.DefaultSelector()
    events.register(listener, selectors.EVENT_READ)
    events.register(wake_read, selectors.EVENT_READ)
    running: dict[int, socket.socket] = {}
    os.rename(f"{address}.new", address)  # whoever sees it may connect
    while os.getppid() == parent:
        for key, _ in events.select(1):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request, fds, _, _ = socket.recv_fds(connection, MOST_BYTES, 3)
                pid = os.fork()
                if pid == 0:
                    _become(fds)
                    for one in (listener, connection, *running.values()):
                        one.close()
                    events.close()
                    os.close(wake_read)
                    os.close(wake_write)
                    found = json.loads(request)
                    return found["arguments"], found
                for fd in fds:
                    os.close(fd)
                running[pid] = connection
                connection.send(str(pid).encode())
                events.register(connection, selectors.EVENT_READ, pid)
            elif key.fileobj == wake_read:
                os.read(wake_read, 4096)
            elif key.data in running:  # its `start` is gone
                _send(key.data, signal.SIGKILL)
                events.unregister(key.fileobj)
        _report(running, events)
    for pid in running:
        _send(pid, signal.SIGKILL)
    raise SystemExit(0)


def serve_inside(places: list[str]) -> tuple[list[str], dict[str, object]]:
    """Serve in the namespaces of each of several processes, `places` being ADDRESS PID ..., until all of these end.

    Returns in a forked process alone, with its request.
    """
    servers = []
    for address, pid in zip(places[::2], places[1::2], strict=True):
        server = os.fork()
        if server == 0:
            _enter(int(pid))
            # The process namespace is entered by children alone.
            inside = os.fork()
            if inside == 0:
                return serve(address)
            os.waitpid(inside, 0)
            os._exit(0)
        servers.append(server)
    for server in servers:
        os.waitpid(server, 0)
    raise SystemExit(0)


def _enter(pid: int) -> None:
    """Enter the namespaces of a process; Python has no function for it before 3.12."""
    import ctypes

    folder = f"/proc/{pid}/ns"
    # All are opened before any is entered: in another mount namespace /proc is another.
    namespaces = [os.open(f"{folder}/{kind}", os.O_RDONLY) for kind in ("ipc", "uts", "net", "pid", "mnt")]
    library = ctypes.CDLL(None, use_errno=True)
    for namespace in namespaces:
        if library.setns(namespace, 0):
            raise OSError(ctypes.get_errno(), f"{folder}: {os.strerror(ctypes.get_errno())}")
        os.close(namespace)


def _report(running: dict[int, socket.socket], events: selectors.BaseSelector) -> None:
    """Send the statuses of the processes that have ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        connection = running.pop(pid)
        if connection in [key.fileobj for key in events.get_map().values()]:
            events.unregister(connection)
        with contextlib.suppress(OSError):
            connection.send(str(status).encode())
        connection.close()


def _become(fds: list[int]) -> None:
    """Take the standard streams of the request and lay off what belongs to the server."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, *PASSED_ON):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.setsid()
    for wanted, fd in enumerate(fds):
        os.dup2(fd, wanted)
        os.close(fd)


def _preload() -> None:
    import gc
    import logging

    import cryptography.hazmat.primitives.asymmetric.ec
    import h5py
    import opacus.accountants  # what a private run plans with; longer to import than all of fedhpc
    import torch
    import torch.nn.functional

    import fedhpc.algorithms.fedavg
    import fedhpc.cli.main
    import fedhpc.run.train  # noqa: F401

    if "mpi4py.MPI" in sys.modules:
        raise SystemExit("MPI was started before the fork")
    assert h5py and opacus and torch and cryptography
    # Opacus gives the root logger a handler where it has none. In a program of ours it has one by then.
    logging.getLogger().handlers.clear()
    gc.collect()
    gc.freeze()


def _run(arguments: list[str], found: dict[str, object]) -> None:
    """What `python ARGUMENTS` does."""
    import runpy

    os.environ.clear()
    os.environ.update(found["env"])  # type: ignore[arg-type]
    sys.executable = os.environ.get(STAND_IN, sys.executable)
    os.chdir(str(found["cwd"]))
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    kind, *rest = arguments
    if kind == "-c":
        program, *words = rest
        sys.argv = ["-c", *words]
        sys.path.insert(0, "")
        main = sys.modules["__main__"].__dict__
        exec(compile(program, "<string>", "exec"), main)
    elif kind == "-m":
        sys.argv = rest
        sys.path.insert(0, str(found["cwd"]))
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _preload()
        _run(*serve(sys.argv[2]))
    elif sys.argv[1] == "serve-inside":
        _preload()
        _run(*serve_inside(sys.argv[2:]))
    else:
        sys.exit(start(sys.argv[2], sys.argv[3:]))
