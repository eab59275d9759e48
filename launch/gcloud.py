"""The commands of launch.tpu_pod: for gcloud, and through it for the shells of the workers.

Every function returns the words of a command and runs nothing. On a worker the code is in `~/recvis_jax`, its Python in
`~/recvis_env`, and the files of the run in `~/recvis_run`: log, process id and group, exit code.
"""

import shlex
from collections.abc import Sequence

from launch import command

ARCHIVE = "recvis_jax.tar.gz"

# Images of TPU VMs, by prefix of the type: https://cloud.google.com/tpu/docs/runtimes
_RUNTIMES = {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}

# The Python of the images is too old, so uv installs a newer one.
SETUP = (
    "python3 -m pip install --quiet --user uv && "
    "python3 -m uv venv --quiet --allow-existing --python 3.12 ~/recvis_env && "
    "python3 -m uv pip install --quiet --python ~/recvis_env/bin/python '.[tpu]'"
)

# After a restart of the host, the process id may belong to another process, so the name is checked, too.
_RUNS = 'grep -aqs launch.attempt "/proc/$(cat pid 2>/dev/null)/cmdline"'

# The exit code is written a moment after the process has ended.
_STATUS = (
    "cd ~/recvis_run 2>/dev/null; for i in 1 2; do "
    'if [ -s code ]; then state="code $(cat code) $(tail -n 1 log.txt)"; break; '
    f"elif {_RUNS}; then state=running; break; else state=lost; sleep 1; fi; "
    'done; echo "$(hostname) $state"'
)

# The process has a minute to save; then its whole process group is killed.
_STOP = (
    f"cd ~/recvis_run 2>/dev/null || exit 0; {_RUNS} || exit 0; kill -TERM $(cat pid); "
    f"for i in $(seq 60); do {_RUNS} || break; sleep 1; done; "
    f"! {_RUNS} || kill -KILL -- -$(cat group)"
)


def runtime(kind: str) -> str:
    """Returns the image for a TPU of type `kind`."""
    return next((v for k, v in _RUNTIMES.items() if kind.startswith(k)), "tpu-ubuntu2204-base")


class Tpu:
    """Commands for one TPU VM or queued resource.

    Args:
      name: of the TPU, and of the queued resource that provides it.
      zone: of the TPU.
      project: of the TPU; None for gcloud's default.
      queued: whether it comes from a queued resource.
      ssh: further options for every ssh and scp, such as --internal-ip.
    """

    def __init__(self, name: str, zone: str, project: str | None, queued: bool, ssh: Sequence[str] = ()):
        self.name, self.queued = name, queued
        self._where = [f"--zone={zone}", *([f"--project={project}"] if project else [])]
        self._ssh = list(ssh)

    def create(self, kind: str, image: str, spot: bool, extra: Sequence[str]) -> list[str]:
        options = [*self._where, f"--accelerator-type={kind}", *(["--spot"] if spot else []), *extra]
        if self.queued:
            return [*_tpus("queued-resources", "create", self.name), f"--node-id={self.name}",
                    f"--runtime-version={image}", *options, "--quiet"]  # fmt: skip
        return [*_tpus("tpu-vm", "create", self.name), f"--version={image}", *options, "--quiet"]

    def state(self) -> list[str]:
        """Prints READY (ACTIVE for a queued resource), PREEMPTED, ...; fails if there is no such TPU."""
        what, field = ("queued-resources", "state.state") if self.queued else ("tpu-vm", "state")
        return [*_tpus(what, "describe", self.name), *self._where, f"--format=value({field})"]

    def delete(self) -> list[str]:
        if self.queued:
            return [*_tpus("queued-resources", "delete", self.name), *self._where, "--force", "--quiet"]
        return [*_tpus("tpu-vm", "delete", self.name), *self._where, "--quiet"]

    def copy(self, path: str) -> list[str]:
        """Copies a file into the home of every worker."""
        words = [*_tpus("tpu-vm", "scp", path, f"{self.name}:{ARCHIVE}"), *self._where]
        return [*words, "--worker=all", *self._ssh, "--quiet"]

    def shell(self, script: str, worker: str = "all") -> list[str]:
        """Runs a script in the shells of the workers."""
        words = [*_tpus("tpu-vm", "ssh", self.name), *self._where, f"--worker={worker}"]
        return [*words, *self._ssh, "--quiet", f"--command={script}"]

    def install(self, setup: str, further: Sequence[str]) -> list[str]:
        """Unpacks the code on every worker and runs shell commands there, `setup` first."""
        unpack = f"rm -rf ~/recvis_jax && mkdir ~/recvis_jax && tar -xzf ~/{ARCHIVE} -C ~/recvis_jax"
        steps = [unpack, "cd ~/recvis_jax", setup, *further]
        return self.shell(" && ".join(steps))

    def start(self, words: Sequence[str], env: Sequence[str]) -> list[str]:
        """Starts `python WORDS` on every worker; it survives the end of the connection."""
        run = (
            'echo $$ > group; cd ~/recvis_jax; "$@" >> ~/recvis_run/log.txt 2>&1 & '
            "echo $! > ~/recvis_run/pid; wait $!; echo $? > ~/recvis_run/code"
        )
        program = f"env {shlex.join(env)} ~/recvis_env/bin/python {shlex.join(words)}"
        return self.shell(
            "mkdir -p ~/recvis_run && cd ~/recvis_run && rm -f code pid group && "
            "{ cat log.txt >> earlier.txt 2>/dev/null; : > log.txt; } && "
            f"{{ nohup setsid sh -c {shlex.quote(run)} run {program} < /dev/null > /dev/null 2>&1 & }} && "
            "for i in $(seq 50); do [ -s pid ] && break; sleep 0.1; done"
        )

    def follow(self, lines: str = "+1") -> list[str]:
        """Prints the log of worker 0 until its process ends."""
        return self.shell(f'cd ~/recvis_run && tail -n {lines} -F --pid="$(cat pid)" log.txt 2>/dev/null', "0")

    def status(self) -> list[str]:
        """Prints a line for each worker: its host name, and "code N LAST LINE", "running" or "lost"."""
        return self.shell(_STATUS)

    def stop(self) -> list[str]:
        """Lets the processes of all workers save and end."""
        return self.shell(_STOP)


def pack(folder: str, path: str) -> list[str]:
    """Packs the files of the working tree in `folder` that git does not ignore."""
    existing = 'for f; do [ ! -e "$f" ] || printf "%s\\0" "$f"; done'
    files = f"git ls-files -z --cached --others --exclude-standard | xargs -0 sh -c {shlex.quote(existing)} sh"
    tar = f"tar --null -T - -czf {shlex.quote(path)}"
    return ["sh", "-c", f"cd {shlex.quote(folder)} && git rev-parse --git-dir > /dev/null && {files} | {tar}"]


def program(passed: Sequence[str], module: str, finished: str) -> list[str]:
    """Returns Python's arguments on a worker."""
    return ["-m", "launch.attempt", *([f"--finished={finished}"] if finished else []), module, *passed]


def _tpus(*words: str) -> list[str]:
    return ["gcloud", "compute", "tpus", *words]


def shown(words: Sequence[str]) -> str:
    """Returns a command as typed in a shell."""
    return words[2] if words[:2] == ["sh", "-c"] else command.shown(words)
