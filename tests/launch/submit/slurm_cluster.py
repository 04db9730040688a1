"""A SLURM of two nodes on this machine, with accounting, each in namespaces of its own: processes, network, host name.

Inside, a node sees its own processes and its own network alone, so `ray stop` there stops nobody else's Ray, and
nothing listens where anybody could reach it. Needs root, the Debian packages that .ci/slurm installs, and a kernel that
gives namespaces; `skip_reason` says what is missing.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NODES = {"n1": "10.77.0.1", "n2": "10.77.0.2"}
RAY_DAEMONS = ("gcs_server", "raylet")  # which leave their parents; Ray's other processes end without them
CLIENTS = ("sbatch", "squeue", "scontrol", "sinfo", "scancel", "sacct", "sacctmgr")
CONF = """\
ClusterName=test
SlurmctldHost=n1(10.77.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=10.77.0.1
AccountingStoragePass={folder}/munge/socket
AccountingStorageEnforce=associations,limits
EnforcePartLimits=ALL
NodeName=n1 NodeAddr=10.77.0.1 CPUs=4 RealMemory=8000 Gres=gpu:2
NodeName=n2 NodeAddr=10.77.0.2 CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=10
PartitionName=funded Nodes=ALL MaxTime=60 AllowAccounts=vision
"""
ACCOUNTING = """\
DbdHost=n1
DbdAddr=10.77.0.1
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=3306
StorageUser=root
"""
DATABASE = ("--no-defaults", "--skip-grant-tables", "--bind-address=127.0.0.1", "--port=3306", "--user=root",
            "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M")  # fmt: skip
NODE = """\
hostname {name} && mount --bind {folder}/hosts /etc/hosts && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray
ip link set lo up
touch {folder}/{name}.ready
sleep infinity & wait  # as process 1, the shell reaps what SLURM leaves
"""
CLIENT = """\
#!/bin/sh
# Inside a job: the command itself. Outside: the command, in the network of the first node.
[ -n "$SLURM_JOB_ID" ] && exec {command} "$@"
exec nsenter --target {pid} --net --uts -- {command} "$@"
"""


def skip_reason() -> str | None:
    """Why no such cluster can be here; None where one can."""
    if os.geteuid():
        return "SLURM's daemons are started as root, and this is another user"
    for program in ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged", "nsenter", "ip"):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            return f"{program} is not installed (.ci/slurm installs it)"
    tried = subprocess.run(["unshare", "--pid", "--fork", "--mount", "--net", "--uts", "true"], capture_output=True)
    return "this machine gives no namespaces" if tried.returncode else None


class SlurmCluster:
    """Two nodes, n1 and n2, of 4 CPUs and 2 invented GPUs; partitions `main`, before it `urgent`, and `funded`.

    The user has the accounts `root`, the default, and `vision`, which alone `funded` takes; `speech` is another's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        self._outer: list[subprocess.Popen[bytes]] = []
        self._inner: dict[str, int] = {}
        self._write_files()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def run_command(self, *command: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **self.environment})
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def on(self, node: str, *command: str) -> str:
        """What a command prints inside a node."""
        inside = ["nsenter", "--target", str(self._inner[node]), "--mount", "--net", "--pid", "--uts", "--"]
        done = subprocess.run([*inside, *command], capture_output=True, text=True, env={**os.environ, **self._conf})
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        words = self.run_command("scontrol", "show", "job", "--oneliner", number).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def restarts(self, number: str) -> int:
        """How often a job has begun again."""
        return int(self.job(number)["Restarts"])

    def wait(self, what: Callable[[], object], seconds: float, describe: Callable[[], str] = str) -> None:
        """Until `what` is true."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, (
                f"not within {seconds} seconds: {self.run_command('squeue', '--all')}\n{describe()}"
            )
            time.sleep(0.3)

    def crash_node(self, node: str) -> None:
        """As when a node breaks down: its slurmd and every process of jobs on it are gone at once."""
        lines = [line.split(None, 2) for line in self.on(node, "ps", "-eo", "pid=,ppid=,comm=").splitlines()]
        gone = {pid for pid, _, name in lines if name in ("slurmd", "slurmstepd") or name in RAY_DAEMONS}
        while more := {pid for pid, parent, _ in lines if parent in gone} - gone:
            gone |= more
        self.on(node, "bash", "-c", 'kill -KILL "$@" || true', "kill", *gone)  # some may just have ended
        self.run_command("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def restore_node(self, node: str) -> None:
        """The lost node is there again."""
        self.on(node, "slurmd", "-N", node)
        self._until(lambda: "idle" in self.run_command("sinfo", "--noheader", f"--nodes={node}", "--format=%t"))

    def empty(self) -> bool:
        """Whether no job waits or runs."""
        return self.run_command("squeue", "--noheader") == ""

    def stop(self) -> None:
        """End every process in the nodes."""
        for process in self._outer:
            process.kill()
            process.wait()

    @property
    def _conf(self) -> dict[str, str]:
        return {"SLURM_CONF": self.environment["SLURM_CONF"]}

    def _write_files(self) -> None:
        folder = self.folder
        for name in ("state", "spool-n1", "spool-n2", "munge", "database/mysql", "bin"):
            (folder / name).mkdir(parents=True)
        (folder / "munge").chmod(0o711)
        (folder / "munge" / "key").write_bytes(os.urandom(128))
        (folder / "munge" / "key").chmod(0o400)
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in NODES.items()))
        for number in range(2):
            os.mknod(folder / f"gpu{number}", 0o020666, os.makedev(1, 3))
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
        (folder / "slurm.conf").write_text(CONF.format(folder=folder))
        (folder / "slurmdbd.conf").write_text(ACCOUNTING.format(folder=folder))
        (folder / "slurmdbd.conf").chmod(0o600)

    def _start(self) -> None:
        for name in NODES:
            shell = NODE.format(name=name, folder=self.folder)
            spaces = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net", "--uts"]
            self._outer.append(subprocess.Popen(["unshare", *spaces, "bash", "-c", shell]))
            self._until((self.folder / f"{name}.ready").exists)
            children = Path(f"/proc/{self._outer[-1].pid}/task/{self._outer[-1].pid}/children")
            self._inner[name] = int(children.read_text().split()[0])
        for command in CLIENTS:
            script = self.folder / "bin" / command
            script.write_text(CLIENT.format(pid=self._inner["n1"], command=shutil.which(command)))
            script.chmod(0o755)
        self._connect()
        munge = {name: str(self.folder / "munge" / name) for name in ("socket", "key", "pid", "log", "seed")}
        options = zip(("socket", "key-file", "pid-file", "log-file", "seed-file"), munge.values(), strict=True)
        self.on("n1", "munged", "--force", *(f"--{option}={path}" for option, path in options))
        self._start_accounting()
        self.on("n1", "slurmctld")
        for name in NODES:
            self.on(name, "slurmd", "-N", name)
        self._until(lambda: self.run_command("sinfo", "--noheader", "--partition=main", "--format=%t %D") == "idle 2")

    def _start_accounting(self) -> None:
        """Before the controller, which asks it for accounts as it starts."""
        data = self.folder / "database"
        paths = {"datadir": data, "socket": data / "socket", "pid-file": data / "pid", "log-error": data / "log"}
        words = [*DATABASE, *(f"--{option}={path}" for option, path in paths.items())]
        tables = b"USE mysql;\n" + Path("/usr/share/mysql/mysql_system_tables.sql").read_bytes()
        subprocess.run(["mariadbd", *words, "--bootstrap"], input=tables, capture_output=True, check=True)
        self.on("n1", "bash", "-c", 'mariadbd "$@" &> /dev/null &', "mariadbd", *words)
        self._until(lambda: self._listening(3306))
        self.on("n1", "slurmdbd")
        self._until(lambda: self._listening(6819))
        for added in (("cluster", "test"), ("account", "vision", "speech"), ("user", "root", "account=vision")):
            self.run_command("sacctmgr", "--immediate", "add", *added)

    def _listening(self, port: int) -> bool:
        return f":{port} " in self.on("n1", "ss", "-ltnH")

    def _connect(self) -> None:
        first, second = self._inner.values()
        ends = ["name", "eth0", "netns", str(first), "type", "veth", "peer", "name", "eth0", "netns", str(second)]
        subprocess.run(["ip", "link", "add", *ends], check=True)
        for name, address in NODES.items():
            self.on(name, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            self.on(name, "ip", "link", "set", "eth0", "up")

    def _until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "SLURM did not start"
            time.sleep(0.05)
