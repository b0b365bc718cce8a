"""A real Slurm on this machine alone: munge, slurmctld, and a slurmd for each pretend node.

Each node lives in namespaces of its own: it has its own host name, its own disk, and dies as a
whole like one whose power fails. All listen on loopback only.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# By default a requeued job waits two minutes, for credentials of its first life to expire.
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Nodes have as many CPUs and as much memory as they say.
SlurmdParameters=config_overrides
GresTypes=gpu
SlurmctldTimeout=30
SlurmdTimeout=10
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
"""
NODE = (
    "NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=512000 Gres=gpu:{gpus}"
)


def why_not():
    """Why there can be no Slurm here; empty if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"needs Slurm: {', '.join(missing)} not installed"
    if os.geteuid() != 0:
        return "needs root, for namespaces and Slurm's daemons"
    tried = subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "true"], check=False)
    return "" if tried.returncode == 0 else "needs namespaces, which this machine does not allow"


def _free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class MiniSlurm:
    """A cluster; ``node1``, ``node2``, ...

    Args:
        root: an empty folder with a short name, since sockets' names are short.
        nodes: how many.
        cpus: of each node, as it says.
        gpus: of each node, as it says.
    """

    def __init__(self, root, *, nodes, cpus, gpus):
        self.root = root
        root.chmod(0o755)  # munge wants its socket to be reachable by all
        self.nodes = {f"node{i + 1}": None for i in range(nodes)}
        for folder in ("state", "log", "dev", "disk", *(f"disks/{name}" for name in self.nodes)):
            (root / folder).mkdir(parents=True)
        self.disk = root / "disk"  # each node sees its own here
        self.environment = os.environ | {"SLURM_CONF": f"{root}/slurm.conf"}
        self._configure(cpus, gpus)

    def _configure(self, cpus, gpus):
        ports = _free_ports(len(self.nodes) + 1)
        conf = CONF.format(
            root=self.root, host=socket.gethostname().split(".")[0], port=ports.pop()
        )
        lines = [
            NODE.format(name=name, port=ports.pop(), cpus=cpus, gpus=gpus) for name in self.nodes
        ]
        (self.root / "slurm.conf").write_text("\n".join(lines) + conf)
        for i in range(gpus):
            os.mknod(self.root / "dev" / f"nvidia{i}", 0o600 | 0o020000, os.makedev(1, 3))
        gres = (
            f"NodeName=node[1-{len(self.nodes)}] Name=gpu File={self.root}/dev/nvidia[0-{gpus - 1}]"
        )
        (self.root / "gres.conf").write_text(gres + "\n")
        hosts = "".join(f"127.0.0.1 {name}\n" for name in self.nodes)
        (self.root / "hosts").write_text(Path("/etc/hosts").read_text() + hosts)
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)

    def __enter__(self):
        options = ("socket", "pid-file", "log-file", "seed-file")
        places = [f"--{name}={self.root}/munge.{name.split('-')[0]}" for name in options]
        self.call("munged", f"--key-file={self.root}/munge.key", *places)
        self.call("slurmctld")
        for name in self.nodes:
            self.start_node(name)
        self._wait_for_nodes()
        return self

    def _wait_for_nodes(self):
        end = time.monotonic() + 60
        while self.call("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split() != [
            *self.nodes
        ]:
            assert time.monotonic() < end, (self.root / "log" / "slurmctld.log").read_text()
            time.sleep(0.1)

    def __exit__(self, *_):
        with suppress(subprocess.SubprocessError):
            self.call("scancel", "--user", "root")
            self.call("scontrol", "shutdown", "slurmctld")
        for name, process in self.nodes.items():
            if process is not None:
                self.fail_node(name)
        self._end("slurmctld.pid")
        self._end("munge.pid")

    def _end(self, file):
        with suppress(OSError, ValueError):
            number = int((self.root / file).read_text())
            os.kill(number, signal.SIGTERM)
            self.wait_until(lambda: not Path(f"/proc/{number}").exists(), seconds=20)

    def call(self, *words, timeout=60, **settings):
        """What a command of Slurm's says."""
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environment | settings.pop("env", {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **settings,
        )
        if done.returncode:
            raise subprocess.SubprocessError(f"{words}: {done.stdout}{done.stderr}")
        return done.stdout

    def start_node(self, name):
        """Switch a node on."""
        script = (
            'hostname "$1"; mount --bind "$2/hosts" /etc/hosts; mount --bind "$2/disks/$1" "$2/disk"'
            '; mkdir -p "$2/spool/$1"; slurmd -D -N "$1" & trap "kill $!" TERM; wait $!; wait'
        )
        namespaces = ("--uts", "--mount", "--propagation=private", "--pid", "--mount-proc")
        init = ("bash", "-c", script, "init", name, str(self.root))
        with (self.root / "log" / f"{name}.out").open("a") as log:
            self.nodes[name] = subprocess.Popen(
                ["unshare", *namespaces, "--fork", "--kill-child=KILL", *init],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def fail_node(self, name):
        """Its power fails: all that runs on it is gone at once."""
        self.nodes[name].kill()
        self.nodes[name].wait()
        self.nodes[name] = None

    def submit(self, *words, **settings):
        """Submit a job; gives its number."""
        return self.call("sbatch", "--parsable", *words, **settings).strip()

    def show(self, job):
        """What Slurm says of a job, by its names."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", job)))

    def wait(self, job, *states, seconds=900):
        """Wait until a job is in one of the states; what Slurm says of it then."""
        return self.wait_until(
            lambda: (now := self.show(job))["JobState"] in states and now, seconds
        )

    def wait_until(self, is_so, seconds=900):
        """Wait until a function gives something."""
        end = time.monotonic() + seconds
        while not (found := is_so()):
            assert time.monotonic() < end, self.call("squeue", "--all")
            time.sleep(0.2)
        return found
