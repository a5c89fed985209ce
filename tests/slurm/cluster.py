"""A real SLURM on this one machine, for tests: a login node and four hospitals, each a host of its own.

Every node is a set of Linux namespaces (network, host name, processes, mounts), so it has its own address, its own
/proc and its own /dev/shm, and can be switched off as a whole. Nothing listens on the machine's own network, nothing is
left behind: a node's first process takes all others of the node with it, and dies with the process that started it,
however that ends.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "libpmix-dev", "iproute2")
"""Debian's; libpmix-dev, because the plugin behind `srun --mpi=pmix` opens libpmix.so without a version."""
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "unshare", "nsenter", "setpriv", "ip")
COMMANDS = ("sbatch", "srun", "salloc", "squeue", "scancel", "scontrol", "sinfo")
LOGIN = "login"
START_S, STOP_S = 90.0, 30.0
WITH_ME = ("setpriv", "--pdeathsig", "KILL")
SPACES = ("unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child")

# $1: the node's name, $2: its hosts file, $3: the file that says it is up.
FIRST_PROCESS = """
set -e
hostname "$1"
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount --bind "$2" /etc/hosts
ip link set lo up
touch "$3"
trap 'exit 0' TERM
while :; do sleep 3600 & wait $! || true; done
"""

# What differs from SLURM's defaults, and why:
# - cred_expire: a requeued job may not start before it has passed (default 2 minutes);
# - TmpFS: srun's PMIx server keeps a folder of the same name on every node, and here all share one /tmp;
# - linuxproc, no task plugin, config_overrides: no cgroups, and nodes that claim more CPUs than the machine has;
# - SlurmdTimeout: a node is given up after about twice that;
# - FirstJobId: what is named after a job (runs/sweep-ID, /tmp/fedhpc-ID) may have been left by tests that were ended;
# - KillWait: between SIGTERM and SIGKILL; MinJobAge: finished jobs stay known;
# - partitions: jobs of `urgent` take the nodes of those of `brief` and `graced`, which are then cancelled: at once, or
#   after 30 s; the others are nobody's prey.
CONFIG = """
ClusterName=hospitals
SlurmctldHost={login}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={base}/munge/socket,cred_expire=5
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
TmpFS={base}/tmp/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
PriorityType=priority/basic
ReturnToService=2
FirstJobId={first_job}
JobRequeue=1
KillWait=5
SlurmdTimeout=10
MinJobAge=86400
MpiDefault=none
PropagateResourceLimits=NONE
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=5 PreemptMode=OFF
PartitionName=brief Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=1 PreemptMode=CANCEL
PartitionName=graced Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=5 PreemptMode=OFF
"""


def lacking() -> list[str]:
    """The programs that a cluster needs and this machine has not."""
    return [tool for tool in TOOLS if shutil.which(tool, path=search_path()) is None]


def install(timeout_s: float = 180) -> None:
    """Debian's packages; the caller is root. No daemon is started: there may be no init system, and none is wanted."""
    apt = ["apt-get", "-q", "-y", "-o", f"DPkg::Lock::Timeout={int(timeout_s)}"]
    quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
    for words in (["update"], ["install", "--no-install-recommends", *PACKAGES]):
        subprocess.run([*apt, *words], check=True, timeout=timeout_s, **quiet)


def allowed() -> bool:
    """Whether this account may make namespaces here; in many containers nobody may."""
    return subprocess.run([*SPACES, "true"], capture_output=True, timeout=START_S, check=False).returncode == 0


def search_path() -> str:
    """PATH with the folders of daemons, which an ordinary account may lack."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


@dataclass
class Cluster:
    """Started with `start`, ended with `stop`; see the module.

    Attributes:
        base: the folder of its state and logs, at most 60 characters: Unix sockets lie in it.
        nodes: how many hospitals, hosp1 and so on.
        cpus: that each claims to have.
        gpus: stand-ins (device files that nothing can compute on) of each.
    """

    base: Path
    nodes: int = 4
    cpus: int = 4
    gpus: int = 2
    _firsts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _pids: dict[str, int] = field(default_factory=dict)
    _munge: subprocess.Popen[bytes] | None = None
    _programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def hospitals(self) -> list[str]:
        """The names of the compute nodes."""
        return [f"hosp{number}" for number in range(1, self.nodes + 1)]

    def start(self) -> None:
        """All daemons up and all nodes idle when it returns."""
        if len(str(self.base)) > 60:
            raise ValueError(f"{self.base}: too long for the Unix sockets in it")
        self.base.mkdir(exist_ok=True)
        self.base.chmod(0o755)  # munge's socket must be reachable
        for name in ("munge", "state", "spool", "log", "run", "bin", "dev", "servers"):
            (self.base / name).mkdir(parents=True)
        for name in self.hospitals:
            (self.base / "tmp" / name).mkdir(parents=True)
        self._write_files()
        self._start_munge()
        for name in (LOGIN, *self.hospitals):
            self._plug_in(name)
        self.on(LOGIN, "slurmctld", "-c")
        for name in self.hospitals:
            self.on(name, "slurmd", "-c")
        if not until(lambda: self.idle() == set(self.hospitals), START_S):
            raise RuntimeError(f"not all nodes came up: {self.idle()}\n{self.logs()}")

    def stop(self) -> None:
        """End every process of the cluster, by its id."""
        for name in list(self._firsts):
            self.power_off(name)
        for program in self._programs:
            program.wait(STOP_S)
        if self._munge is not None:
            self._munge.terminate()
            self._munge.wait(STOP_S)

    def on(self, node: str, *command: str | Path, timeout_s: float = 60, check: bool = True) -> str:
        """Run a command on a node; its standard output."""
        done = subprocess.run(
            [*self._enter(node), *map(str, command)], capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{command} on {node}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def serve(self, *command: str | Path, env: Mapping[str, str]) -> None:
        """Start `command SERVER PID ...`: for each hospital where it is to serve, and whose namespaces to enter.

        It ends when all nodes have ended.
        """
        places = [str(word) for name in self.hospitals for word in (self.server(name), self._pids[name])]
        words = [*map(str, command), *places]
        self._programs.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, env={**os.environ, **env}))

    def env(self) -> dict[str, str]:
        """Variables with which SLURM's commands, called outside the cluster, act on its login node."""
        return {"SLURM_CONF": str(self.base / "slurm.conf"), "PATH": f"{self.base / 'bin'}:{search_path()}"}

    def idle(self) -> set[str]:
        """The hospitals that wait for work."""
        lines = self.on(LOGIN, "sinfo", "-h", "-N", "-o", "%N %T", check=False).splitlines()
        return {line.split()[0] for line in lines if line.endswith(" idle")}

    def power_off(self, node: str) -> None:
        """As if its plug were pulled: every process on it is gone at once."""
        self.server(node).unlink(missing_ok=True)
        os.kill(self._pids.pop(node), signal.SIGKILL)
        self._firsts.pop(node).wait(STOP_S)

    def power_on(self, node: str) -> None:
        """It boots again and joins the cluster."""
        self.on(LOGIN, "ip", "link", "del", f"v-{node}", check=False)
        self._plug_in(node)
        self.on(node, "slurmd", "-c")

    def server(self, node: str) -> Path:
        """Where the node's server of preloaded programs answers, if it has one."""
        return self.base / "servers" / node

    def logs(self) -> str:
        """The ends of all daemons' logs."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted((self.base / "log").iterdir())
        )

    def _write_files(self) -> None:
        first_job = 1000 + int.from_bytes(os.urandom(3))
        lines = [CONFIG.format(login=LOGIN, address=self._address(LOGIN), base=self.base, first_job=first_job)]
        for name in self.hospitals:
            gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
            lines.append(f"NodeName={name} NodeAddr={self._address(name)} CPUs={self.cpus} RealMemory=16000{gres}")
        (self.base / "slurm.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        hosts = [f"{self._address(name)} {name}" for name in (LOGIN, *self.hospitals)]
        (self.base / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts]) + "\n", encoding="utf-8")
        devices = [self.base / "dev" / f"gpu{index}" for index in range(self.gpus)]
        for device in devices:
            # /dev/null by another name: SLURM wants a character device whose name ends in the GPU's index.
            os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
        lines = [f"NodeName={name} Name=gpu File={device}" for name in self.hospitals for device in devices]
        (self.base / "gres.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for name in COMMANDS:
            # On a node the real one; outside the cluster the real one on the login node.
            real, enter = shutil.which(name, path=search_path()), " ".join(self._enter_words())
            script = self.base / "bin" / name
            script.write_text(
                f'#!/bin/sh\ncase $(uname -n) in {LOGIN}|hosp*) exec {real} "$@";; esac\n'
                f'exec {enter.format(pid=f"$(cat {self.base}/run/{LOGIN}.pid)", pwd="$PWD")} {real} "$@"\n',
                encoding="utf-8",
            )
            script.chmod(0o755)

    def _start_munge(self) -> None:
        folder = self.base / "munge"
        folder.chmod(0o711)
        key = folder / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        words = ["--foreground", *(f"--{option}={folder / name}" for option, name in options.items())]
        with (self.base / "log" / "munged.log").open("wb") as log:
            self._munge = subprocess.Popen(
                [*WITH_ME, "munged", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": search_path()},
            )
        if not until((folder / "socket").exists, START_S):
            raise RuntimeError(f"munged did not start\n{self.logs()}")

    def _plug_in(self, node: str) -> None:
        up = self.base / "run" / f"{node}.up"
        up.unlink(missing_ok=True)
        words = ["bash", "-c", FIRST_PROCESS, node, node, self.base / "hosts", up]
        log = (self.base / "log" / f"{node}.log").open("wb")
        with log:
            first = subprocess.Popen(
                [*WITH_ME, *SPACES, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._firsts[node] = first
        if not until(up.exists, START_S):
            raise RuntimeError(f"node {node} did not come up\n{self.logs()}")
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        self._pids[node] = int(children[0])
        (self.base / "run" / f"{node}.pid").write_text(children[0], encoding="utf-8")
        self._cable(node)

    def _cable(self, node: str) -> None:
        """The switch is in the login node's network namespace; nothing is in the machine's own."""
        if node == LOGIN:
            self.on(LOGIN, "ip", "link", "add", "switch", "type", "bridge")
            port = "switch"
        else:
            port, far = "eth0", str(self._pids[node])
            self.on(LOGIN, "ip", "link", "add", f"v-{node}", "type", "veth", "peer", "name", port)
            # By number from outside: the login node's /proc does not show the other node's processes.
            subprocess.run(
                ["nsenter", "-t", str(self._pids[LOGIN]), "-n", "ip", "link", "set", port, "netns", far], check=True
            )
            self.on(LOGIN, "ip", "link", "set", f"v-{node}", "master", "switch", "up")
        self.on(node, "ip", "addr", "add", f"{self._address(node)}/24", "dev", port)
        self.on(node, "ip", "link", "set", port, "up")

    def _address(self, node: str) -> str:
        number = 10 if node == LOGIN else 10 + int(node.removeprefix("hosp"))
        return f"10.77.0.{number}"

    def _enter(self, node: str) -> list[str]:
        words = self._enter_words()
        return [word.format(pid=self._pids[node], pwd=os.getcwd()) for word in words]

    def _enter_words(self) -> Sequence[str]:
        config = f"SLURM_CONF={self.base / 'slurm.conf'}"
        return ["nsenter", "-t", "{pid}", "-n", "-u", "-i", "-m", "-p", "--wd={pwd}", "--", "env", config]


def until(reached: Callable[[], bool], limit_s: float, pause_s: float = 0.05) -> bool:
    """Whether `reached` came true within `limit_s` seconds."""
    end = time.monotonic() + limit_s
    while not reached():
        if time.monotonic() > end:
            return False
        time.sleep(pause_s)
    return True
