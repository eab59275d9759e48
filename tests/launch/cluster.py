"""A Slurm cluster of this machine's own: munge, slurmctld and two nodes in a folder, on ports of 127.0.0.1."""

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")

_NOT_ENDED = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")

_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=20
UnkillableStepTimeout=60
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 State=UNKNOWN
NodeName={host}-second NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


def missing() -> list[str]:
    """Returns the programs of Slurm and munge that are not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for name in DAEMONS if not shutil.which(name, path=path)]


class Cluster:
    """Starts the daemons; `env` holds what Slurm's commands need to find them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        self._daemons: list[subprocess.Popen] = []
        try:
            self._start(folder)
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path) -> None:
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        options = {name: f"{folder}/munge.{name}" for name in ("socket", "seed", "log", "pid")}
        files = [f"--{'socket' if k == 'socket' else k + '-file'}={v}" for k, v in options.items()]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", *files)
        self._wait(lambda: (folder / "munge.socket").exists(), "munge's socket")
        # The first node has the machine's name, as JAX's processes meet at the address of that node.
        host = socket.gethostname().split(".")[0]
        fields = {"host": host, "user": getpass.getuser(), "folder": folder, "ports": _free_ports()}
        (folder / "slurm.conf").write_text(_CONFIG.format(**fields))
        self._daemon("slurmctld", "-D", "-i")
        for node in (host, f"{host}-second"):
            (folder / f"spool.{node}").mkdir()
            self._daemon("slurmd", "-D", "-N", node)
        self._wait(lambda: self.run("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"], "two idle nodes")

    def _daemon(self, *words: str) -> None:
        with (self.folder / f"{words[0]}.{len(self._daemons)}.out").open("w") as out:
            daemon = subprocess.Popen(words, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=self.env)
        self._daemons.append(daemon)

    def _wait(self, condition, what: str, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end or any(daemon.poll() is not None for daemon in self._daemons):
                files = sorted(p for p in self.folder.iterdir() if p.suffix in (".log", ".out", ".conf"))
                logs = "\n".join(f"--- {p.name}\n{p.read_text()[-2000:]}" for p in files)
                raise AssertionError(f"no {what} within {timeout} s, or a daemon has ended\n{logs}")
            time.sleep(0.2)

    def run(self, *words: str) -> str:
        """Runs one of Slurm's commands, and returns what it printed."""
        done = subprocess.run(words, capture_output=True, text=True, env=self.env, timeout=60)
        return done.stdout.strip()

    def launch(self, *flags: object, code: int = 0) -> str:
        """Runs launch.slurm at the repository's root, and returns what it printed."""
        env = {**self.env, "PYTHONPATH": f"{HERE}:{ROOT}"}
        env.pop("XLA_FLAGS", None)  # of the tests: many devices
        command = [sys.executable, "-m", "launch.slurm", *map(str, flags)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, *flags: object) -> str:
        """Submits a run by launch.slurm, and returns the job's number."""
        found = re.search(r"submitted job (\d+)\n", self.launch(*flags))
        assert found
        return found[1]

    def state(self, job: str) -> str:
        """Returns the state of a job, as `scontrol` names it."""
        found = re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", job))
        return found[1] if found else ""

    def end(self, job: str, timeout: float = 300) -> str:
        """Waits until a job has ended for good, and returns its last state."""
        self._wait(lambda: self.state(job) not in ("", *_NOT_ENDED), f"end of job {job}", timeout)
        return self.state(job)

    def close(self) -> None:
        """Cancels what still runs and ends the daemons, the first last."""
        if (self.folder / "slurm.conf").exists():
            self.run("scancel", "--full", "--signal=KILL", "--state=RUNNING", "--me")
            self.run("scancel", "--me")
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _free_ports() -> list[int]:
    """Returns three free ports."""
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for free in (a, b, c):
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in (a, b, c)]
