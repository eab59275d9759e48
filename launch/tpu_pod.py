"""Runs a training on all hosts of a Cloud TPU, with gcloud.

  python -m launch.tpu_pod --name=pod --zone=us-west4-a --create --type=v5litepod-16 --spot --delete \\
    --config=configs/imagenet/vit_s16.py --workdir=gs://bucket/runs/vit [...]

In order: creates the TPU if asked (--create, or --queued for a queued resource), copies the working tree to all hosts
and installs it, starts the program on all of them, and shows the output of host 0. If a host fails, all are restarted;
a preempted spot TPU is first created again. --delete deletes the TPU when the run has ended; without --workdir it only
does that. Flags that are not listed below go to the program.

The run does not depend on this launcher: after Ctrl-C or a lost connection the same command attaches to it again, and
--stop lets the run save and stop. The hosts must share the workdir: gs://BUCKET/... is mounted on each of them at
/gcs/BUCKET, and --prepare may mount anything else.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from launch import attempt, buckets, command, gcloud
from recvis_jax import errors

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this launcher."""
    flags.DEFINE_string("name", None, "Name of the TPU.")
    flags.DEFINE_string("zone", None, "Its zone, such as us-west4-a.")
    flags.DEFINE_string("project", None, "Project; gcloud's own by default.")
    flags.DEFINE_bool("create", False, "Create the TPU if there is none of that name.")
    flags.DEFINE_bool("queued", False, "Create it through a queued resource, which waits for capacity.")
    flags.DEFINE_string("type", "v5litepod-16", "Type of the TPU.")
    flags.DEFINE_string("runtime_version", None, "Image of the hosts; by default the one for the type.")
    flags.DEFINE_bool("spot", False, "Create a spot TPU: cheaper, and may be preempted.")
    flags.DEFINE_multi_string("extra", [], "Another option to create it, such as --extra=--network=net; repeatable.")
    flags.DEFINE_multi_string("ssh", [], "Another option for ssh and scp, such as --ssh=--internal-ip; repeatable.")
    flags.DEFINE_string("setup", gcloud.SETUP, "Shell command that installs the code on a host.")
    flags.DEFINE_string("prepare", None, "Shell command to run on every host after that, for mounts or data.")
    flags.DEFINE_multi_string("env", [], "NAME=VALUE for the program's environment; repeatable.")
    flags.DEFINE_bool("stop", False, "Only let the run on the TPU save and stop.")
    flags.DEFINE_bool("delete", False, "Delete the TPU when the run has ended.")
    flags.DEFINE_integer("max_restarts", 3, "How often to restart all hosts.", lower_bound=0)
    flags.DEFINE_float("poll", 30.0, "Seconds between checks of the hosts.", lower_bound=0.1)
    command.define_flags()
    flags.adopt_module_key_flags(command)
    attempt.define_flags()
    flags.adopt_module_key_flags(attempt)


_ROOT = str(Path(__file__).resolve().parent.parent)
_THERE = ("READY", "ACTIVE")
_GONE = (None, "PREEMPTED", "TERMINATED", "STOPPED", "SUSPENDING", "SUSPENDED", "DELETING", "FAILED")
_TRIES = 5  # to connect, as new hosts do not answer at once


class _Preempted(Exception):
    """The TPU is gone."""


def main(passed: list[str]) -> int:
    if not FLAGS.name or not FLAGS.zone:
        raise errors.BadRequest("--name and --zone are needed, for instance --name=pod --zone=us-west4-a.")
    tpu = gcloud.Tpu(FLAGS.name, FLAGS.zone, FLAGS.project, FLAGS.queued, FLAGS.ssh)
    if FLAGS.stop or (FLAGS.delete and command.value(passed, "workdir") is None):
        words = tpu.stop() if FLAGS.stop else tpu.delete()
        print(gcloud.shown(words)) if FLAGS.dry_run else _run(words)
        return 0
    if not command.workdir(passed).startswith(("/", "gs://")):
        raise errors.BadRequest(
            f"--workdir={command.workdir(passed)} is not a place that the hosts share, such as gs://bucket/x."
        )
    command.check(passed)
    passed, mounted = buckets.localized(passed)
    further = [*map(buckets.mount, mounted), *([FLAGS.prepare] if FLAGS.prepare else [])]
    install = tpu.install(FLAGS.setup, further)
    start = tpu.start(gcloud.program(passed, FLAGS.program, attempt.finished_file()), FLAGS.env)
    if FLAGS.dry_run:
        archive = f"/tmp/{gcloud.ARCHIVE}"
        made = [_create(tpu)] if FLAGS.create or FLAGS.queued else []
        installed = [gcloud.pack(_ROOT, archive), tpu.copy(archive), install]
        deleted = [tpu.delete()] if FLAGS.delete else []
        for line in (*made, *installed, start, tpu.follow(), tpu.status(), *deleted):
            print(gcloud.shown(line))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = _train(tpu, install, start)
    except KeyboardInterrupt:
        command.say("the run continues without this launcher; --stop stops it, the same command attaches again.")
        raise
    if FLAGS.delete and not code:
        _run(tpu.delete())
    elif not FLAGS.delete or code:
        command.say(f"the TPU still exists and costs money. To delete it: {gcloud.shown(tpu.delete())}")
    return code


def _train(tpu: gcloud.Tpu, install: list[str], start: list[str]) -> int:
    """Runs the program until it is done, or fails too often; returns its exit code."""
    ready, code, why = False, 1, ""
    for life in range(FLAGS.max_restarts + 1):
        if life:
            command.say(f"{why}; starting again ({life} of {FLAGS.max_restarts})")
        try:
            going = _make(tpu) and not life and "running" in _guarded(tpu, tpu.status)
            if going:
                command.say("run in progress; attaching")
            else:
                if not ready:
                    _install(tpu, install)
                _run(start)
            ready = True
            code = _watch(tpu)
            if code:
                _guarded(tpu, tpu.stop)
            if code in (0, command.BAD_REQUEST):
                return code
            why = (
                "the run stopped before its end" if code == command.STOPPED else f"a host failed with exit code {code}"
            )
        except _Preempted as e:
            code, why, ready = 1, str(e), False
    command.say(f"{why}; --max_restarts={FLAGS.max_restarts} is used up")
    return code


def _create(tpu: gcloud.Tpu) -> list[str]:
    return tpu.create(FLAGS.type, FLAGS.runtime_version or gcloud.runtime(FLAGS.type), FLAGS.spot, FLAGS.extra)


def _make(tpu: gcloud.Tpu) -> bool:
    """Creates the TPU if it is gone and creation was requested, and waits for it; returns whether it existed before."""
    state = found = _state(tpu)
    if found in _GONE:
        if not (FLAGS.create or FLAGS.queued):
            raise errors.BadRequest(f"the TPU {tpu.name} is {found or 'not there'}; --create creates it.")
        if found:  # the name is still in use
            _run(tpu.delete())
        _run(_create(tpu))
        state = _state(tpu)
    while state not in _THERE:
        if state in _GONE:
            raise _Preempted(f"the TPU {tpu.name} is {state or 'gone'}")
        command.say(f"the TPU {tpu.name} is {state}; waiting")
        time.sleep(FLAGS.poll)
        state = _state(tpu)
    return found not in _GONE


def _install(tpu: gcloud.Tpu, install: list[str]) -> None:
    """Copies the working tree to all hosts, and installs it there."""
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{folder}/{gcloud.ARCHIVE}"
        _run(gcloud.pack(_ROOT, archive))
        _guarded(tpu, lambda: tpu.copy(archive))
    _guarded(tpu, lambda: install)


def _watch(tpu: gcloud.Tpu) -> int:
    """Shows the log of host 0 until all hosts have ended or one has failed; returns the exit code."""
    follow = _follow(tpu)
    try:
        while True:
            try:
                follow.wait(timeout=FLAGS.poll)
            except subprocess.TimeoutExpired:
                pass
            states = [
                words for line in _guarded(tpu, tpu.status).splitlines() if len(words := line.split(maxsplit=3)) > 1
            ]
            codes = [int(words[2]) for words in states if words[1] == "code"]
            codes += [1 for words in states if words[1] == "lost"]  # the host was restarted
            if any(codes):
                for words in states:
                    command.say(f"host {' '.join(words)}")
                # The code of a signal tells more than those of the hosts that failed because of it.
                return command.BAD_REQUEST if command.BAD_REQUEST in codes else max(codes)
            if states and len(codes) == len(states):
                return 0
            if follow.poll():  # the connection was lost
                follow = _follow(tpu, "20")
            elif follow.poll() == 0:  # host 0 is done, others are not
                time.sleep(min(1.0, FLAGS.poll))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(follow.pid, signal.SIGKILL)  # otherwise gcloud leaves its ssh running
        follow.wait()


def _follow(tpu: gcloud.Tpu, lines: str = "+1") -> subprocess.Popen:
    return subprocess.Popen(_checked(tpu.follow(lines)), stdin=subprocess.DEVNULL, process_group=0)


def _state(tpu: gcloud.Tpu) -> str | None:
    quiet = subprocess.DEVNULL if FLAGS.create or FLAGS.queued else None  # then a missing TPU is not an error
    done = subprocess.run(_checked(tpu.state()), stdout=subprocess.PIPE, stderr=quiet, text=True)
    return done.stdout.strip() or None if done.returncode == 0 else None


def _guarded(tpu: gcloud.Tpu, make: Callable[[], list[str]]) -> str:
    """Runs a command on the hosts, retrying if the connection fails; returns its output.

    Raises:
      _Preempted: it fails because the TPU is gone.
      Failure: it fails although the TPU exists.
    """
    for left in reversed(range(_TRIES)):
        done = subprocess.run(_checked(make()), stdout=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return done.stdout
        state = _state(tpu)
        if state not in _THERE:
            raise _Preempted(f"the TPU {tpu.name} is {state or 'gone'}")
        if left:
            time.sleep(FLAGS.poll)
    raise errors.Failure(f"failed {_TRIES} times (exit code {done.returncode}): {gcloud.shown(make())[:300]}")


def _run(words: list[str]) -> None:
    """Runs a command that must succeed."""
    command.say(gcloud.shown(words)[:200])
    done = subprocess.run(_checked(words))
    if done.returncode:
        raise errors.Failure(f"failed (exit code {done.returncode}): {gcloud.shown(words)[:300]}")


def _checked(words: list[str]) -> list[str]:
    if not shutil.which(words[0]):
        raise errors.BadRequest(f"there is no {words[0]} here; see https://cloud.google.com/sdk/docs/install.")
    return words


if __name__ == "__main__":
    command.run(main, define_flags)
