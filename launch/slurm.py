"""Submits a run to Slurm: one process per task, restarted after preemption, time limits and failures.

  python -m launch.slurm --nodes=2 --tasks_per_node=8 --gpus_per_task=1 --time=8:00:00 \\
    --config=configs/imagenet/resnet50.py --workdir=runs/r50 [...]

Run it from the repository's root, on a file system that the nodes share. The script goes to `<workdir>/slurm/job.sh`
and the output to `<workdir>/slurm/JOB.txt`. Flags that are not listed below go to the program, which finds the other
processes through Slurm.

Shortly before the time limit, and when the job is preempted, the run is told to save. The job is then queued again and
continues, until the run has finished or --max_restarts is used up. The same happens after a failure, but not after
`scancel` (which lets the run save) or a wrong request (exit code 2).
"""

import hashlib
import shlex
import subprocess
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from launch import attempt, command
from recvis_jax import errors

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this launcher."""
    flags.DEFINE_integer("nodes", 1, "Number of nodes.", lower_bound=1)
    flags.DEFINE_integer("tasks_per_node", 1, "Processes on each node.", lower_bound=1)
    flags.DEFINE_integer("gpus_per_task", 0, "GPUs of each process.", lower_bound=0)
    flags.DEFINE_integer("cpus_per_task", 0, "CPUs of each process; 0 for the cluster's default.", lower_bound=0)
    flags.DEFINE_string("time", None, "Time limit of each start of the job, such as 8:00:00 or 1-00:00:00.")
    flags.DEFINE_string("partition", None, "Partition.")
    flags.DEFINE_string("account", None, "Account to charge.")
    flags.DEFINE_string("mem", None, "Memory of each node, such as 200G.")
    flags.DEFINE_multi_string("extra", [], "Another option of sbatch, such as --extra=--constraint=a100; repeatable.")
    flags.DEFINE_integer("signal", 120, "Seconds before the time limit at which the run saves.", lower_bound=0)
    flags.DEFINE_integer("max_restarts", 20, "How often the job is queued again.", lower_bound=0)
    command.define_flags()
    flags.adopt_module_key_flags(command)
    attempt.define_flags()
    flags.adopt_module_key_flags(attempt)


_SCRIPT = """#!/bin/bash
{options}

# Written by launch.slurm. Slurm runs this script from its beginning each time that the job is queued again.
cd {directory} || exit 1
{environment}finished={finished}
stamp() {{ [ -n "$finished" ] && stat -c '%i %y' "$finished" 2>/dev/null; }}
before=$(stamp)

stopped= limit= srun=
stop() {{  # srun would kill its tasks at once if it were sent a SIGTERM itself
  [ -z "$stopped" ] || return
  stopped=1
  [ -n "$srun" ] || return
  for _ in {{1..50}}; do
    scancel --signal=TERM "$SLURM_JOB_ID.0" 2>/dev/null && break
    kill -0 "$srun" 2>/dev/null || break
    sleep 0.2
  done
}}
trap stop TERM
trap 'limit=1; stop' USR1

echo "launch: life ${{SLURM_RESTART_COUNT:-0}} of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"
srun {srun} \\
  {command} &
srun=$!
[ -z "$stopped" ] || {{ stopped=; stop; }}

# A trapped signal ends a wait before the process does, so wait until there is nothing left to wait for.
wait "$srun"; code=$?
while kill -0 "$srun" 2>/dev/null; do wait "$srun"; code=$?; done
wait "$srun" 2>/dev/null; again=$?
[ "$again" = 127 ] || code=$again

if [ "$code" = 0 ]; then
  if [ -n "$finished" ]; then [ "$(stamp)" = "$before" ] || exit 0
  elif [ -z "$stopped" ]; then exit 0
  fi
  why="the run stopped before its end"
  code={stopped_code}
else
  why="the run failed with exit code $code"
fi
# Slurm ends the job by itself where it was cancelled, preempted, out of time, or queued again by somebody else.
job=$(scontrol show job "$SLURM_JOB_ID")
if [ "$code" = {bad_request} ]; then
  echo "launch: $why: a wrong request, which is not tried again"
elif [ "${{SLURM_RESTART_COUNT:-0}}" -ge {max_restarts} ]; then
  echo "launch: $why; --max_restarts={max_restarts} is used up"
elif [[ "$job" = *JobState=RUNNING* || -n "$limit" || "$job" = *PreemptTime=[0-9]* ]]; then
  echo "launch: $why; the job is queued again"
  scontrol requeue "$SLURM_JOB_ID"
else
  echo "launch: $why, as Slurm ended the job: it was cancelled, or is already queued again"
fi
exit "$code"
"""


def main(passed: list[str]) -> int:
    folder = Path(command.workdir(passed)).expanduser().absolute() / "slurm"
    command.check(passed)
    script = _script(folder, passed)
    path = folder / "job.sh"
    submit = ["sbatch", "--parsable", str(path)]
    if FLAGS.dry_run:
        print(f"mkdir -p {shlex.quote(str(folder))}")
        print(f"cat > {shlex.quote(str(path))} <<'END_OF_SCRIPT'\n{script}END_OF_SCRIPT\n{command.shown(submit)}")
        return 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
    except OSError as e:
        raise errors.BadRequest(f"cannot write to {folder}: {e.strerror or e}.") from e
    try:
        done = subprocess.run(submit, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise errors.BadRequest("there is no sbatch here: run this on a login node of the cluster.") from e
    if done.returncode:
        raise errors.Failure(f"sbatch refused {path}: {done.stderr.strip()}")
    job = done.stdout.strip().split(";")[0]
    print(
        f"submitted job {job}\n"
        f"state:  squeue --jobs={job}\n"
        f"output: tail -F {shlex.quote(str(folder / f'{job}.txt'))}\n"
        f"save and queue again: scancel --signal=TERM {job}\n"
        f"save and stop:        scancel {job}"
    )
    return 0


def _script(folder: Path, passed: list[str]) -> str:
    """Returns the batch script."""
    # Two jobs must not write to one folder: Slurm runs only one job with this name at a time.
    name = f"{command.job_name(str(folder.parent))}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"
    output = str(folder).replace("%", "%%") + "/%j.txt"
    options = {
        "job-name": name, "output": output, "open-mode": "append", "dependency": "singleton",
        "nodes": FLAGS.nodes, "ntasks-per-node": FLAGS.tasks_per_node, "gpus-per-task": FLAGS.gpus_per_task,
        "cpus-per-task": FLAGS.cpus_per_task, "time": FLAGS.time, "partition": FLAGS.partition,
        "account": FLAGS.account, "mem": FLAGS.mem, "signal": f"B:USR1@{FLAGS.signal}" if FLAGS.signal else None,
    }  # fmt: skip
    lines = ["#SBATCH --requeue", *(f"#SBATCH --{k}={_quoted(str(v))}" for k, v in options.items() if v)]
    lines += [f"#SBATCH {extra}" for extra in FLAGS.extra]
    # Under Slurm, JAX uses one GPU per task unless it is told which ones to use.
    gpus = ",".join(map(str, range(FLAGS.gpus_per_task)))
    finished = attempt.finished_file()
    return _SCRIPT.format(
        options="\n".join(lines),
        directory=shlex.quote(str(Path.cwd())),
        environment=f"export JAX_LOCAL_DEVICE_IDS={gpus}\n" if gpus else "",
        finished=shlex.quote(str(folder.parent / finished)) if finished else "",
        # If one task fails, the others end by themselves; if not, Slurm ends them. srun takes the CPUs per task only
        # from its own command line.
        srun="--wait=300" + (f" --cpus-per-task={FLAGS.cpus_per_task}" if FLAGS.cpus_per_task else ""),
        command=command.shown(command.python(FLAGS.program, passed)),
        stopped_code=command.STOPPED,
        bad_request=command.BAD_REQUEST,
        max_restarts=FLAGS.max_restarts,
    )


def _quoted(text: str) -> str:
    """Quotes a value of an #SBATCH line, where neither `$` nor backquotes mean anything."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if set(text) & set(" '\"\\#") else text


if __name__ == "__main__":
    command.run(main, define_flags)
