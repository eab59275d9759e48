"""Stands in for gcloud, and for the hosts of a TPU: `Cloud(folder)` puts both into a folder that goes onto PATH.

Every command is noted word by word. `tpu-vm ssh` runs its --command with `sh -c` on each host, which is a home folder
here; so quoting, the copied code and the processes are real. Python's installers are only noted.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
HOSTS = 2

_GCLOUD = """#!/bin/sh
exec {python} {here}/cloud.py "$@"
"""

# On a host `python3 -m uv venv ... FOLDER` makes a Python that is the one of the tests.
_PYTHON3 = """#!/bin/sh
echo "$*" >> "$HOME/python3.txt"
for last; do :; done
[ "$3" != venv ] || {{ mkdir -p "$last/bin" && printf '#!/bin/sh\\nexec {python} "$@"\\n' > "$last/bin/python" &&
chmod +x "$last/bin/python"; }}
"""

_GCSFUSE = """#!/bin/sh
echo "$*" >> "$HOME/gcsfuse.txt"
"""

_SUDO = """#!/bin/sh
exec "$@"
"""


class Cloud:
    """A folder that holds the state of the cloud: the TPU's state, the hosts' homes, and the commands given."""

    def __init__(self, folder: Path):
        self.folder = folder
        here, hosts = folder / "bin", folder / "host_bin"
        programs = {
            here / "gcloud": _GCLOUD,
            hosts / "python3": _PYTHON3,
            hosts / "gcsfuse": _GCSFUSE,
            hosts / "sudo": _SUDO,
        }
        for path, text in programs.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.format(python=sys.executable, here=HERE))
            path.chmod(0o755)
        self.env = {"CLOUD": str(folder), "PATH": f"{folder}/bin:{os.environ['PATH']}"}

    def commands(self) -> list[list[str]]:
        """The words of every gcloud command so far, but not of those that only look on."""
        path = self.folder / "commands.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [
            words for words in found if not (words[3] == "describe" or "tail " in words[-1] or "hostname" in words[-1])
        ]

    def looks(self) -> int:
        """How often the hosts were asked how they are."""
        path = self.folder / "commands.jsonl"
        return path.read_text().count("hostname") if path.exists() else 0

    def home(self, host: int) -> Path:
        return self.folder / f"home_{host}"

    def preempt(self) -> None:
        """Takes the TPU away: its processes are killed, and no host answers any more."""
        (self.folder / "state").write_text("PREEMPTED")
        self.close()

    def close(self) -> None:
        """Kills what runs on the hosts."""
        for path in self.folder.glob("home_*/recvis_run/group"):
            try:
                os.killpg(int(path.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                pass


def main(words: list[str]) -> int:
    folder = Path(os.environ["CLOUD"])
    with (folder / "commands.jsonl").open("a") as f:
        f.write(json.dumps(words) + "\n")
    path = folder / "state"
    state = path.read_text() if path.exists() else None
    group, verb = words[2:4]
    flags = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    if verb == "create":
        if state:
            print("ALREADY_EXISTS", file=sys.stderr)
            return 1
        path.write_text("WAITING_FOR_RESOURCES" if group == "queued-resources" else "READY")
        return 0
    if state is None:
        print("NOT_FOUND", file=sys.stderr)
        return 1
    if verb == "describe":
        print(state)
        if state == "WAITING_FOR_RESOURCES":
            path.write_text("ACTIVE")
        return 0
    if verb == "delete":
        path.unlink()
        for home in folder.glob("home_*"):
            home.rename(folder / f"gone_{len(list(folder.glob('gone_*')))}")
        return 0
    if state not in ("READY", "ACTIVE"):
        print("Connection refused", file=sys.stderr)
        return 255
    hosts = range(HOSTS) if flags["--worker"] == "all" else [int(flags["--worker"])]
    homes = [folder / f"home_{host}" for host in hosts]
    for home in homes:
        home.mkdir(exist_ok=True)
    if verb == "scp":
        target = words[5].partition(":")[2]
        for home in homes:
            (home / target).write_bytes(Path(words[4]).read_bytes())
        return 0
    assert verb == "ssh", words
    running = []
    for host, home in zip(hosts, homes, strict=True):
        env = {"HOME": str(home), "TPU_WORKER_ID": str(host), "PATH": f"{folder}/host_bin:{os.environ['PATH']}"}
        shell = ["sh", "-c", flags["--command"].replace("/gcs/", f"{folder}/gcs/")]  # where mounts are
        running.append(subprocess.Popen(shell, cwd=home, stdin=subprocess.DEVNULL, env={**os.environ, **env}))
    return max(process.wait() for process in running)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
