"""launch.tpu_pod against a stand-in for gcloud that runs what it is told on two hosts of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from cloud import Cloud
from cluster import HERE, ROOT

NASTY = ['--text=it\'s "a" $HOME `date` \\ * %j', "--other=", "--lines=a\nb"]
WHERE = ("--name=pod", "--zone=us-west4-a", "--project=mine")
ZONE = ["--zone=us-west4-a", "--project=mine"]


@pytest.fixture
def cloud(tmp_path):
    made = Cloud(tmp_path / "cloud")
    yield made
    made.close()


def start(cloud, *flags):
    env = {**os.environ, **cloud.env, "PYTHONPATH": f"{HERE}:{ROOT}"}
    command = [sys.executable, "-m", "launch.tpu_pod", *WHERE, "--poll=0.5", *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT)


def finish(process, code=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out[-3000:] + err[-3000:]
    return out, err


def train(tmp_path, *flags):
    """The flags of a run of the program that counts."""
    return ("--program=counting", "--finished=summary.json", f"--workdir={tmp_path / 'it is shared'}", *flags)


def begun(tmp_path, count=3):
    kept = tmp_path / "it is shared/count_1"
    end = time.monotonic() + 60
    while not (kept.exists() and int(kept.read_text()) >= count):
        assert time.monotonic() < end
        time.sleep(0.02)


def verbs(cloud):
    """What gcloud was told, in short: create, scp, install, start, stop, delete."""
    marks = {"tar -xzf": "install", "nohup": "start", "kill -TERM": "stop"}
    found = []
    for words in cloud.commands():
        script = words[-1] if words[3] == "ssh" else ""
        found.append(next((name for mark, name in marks.items() if mark in script), words[3]))
    return found


@pytest.mark.full
def test_a_run_from_nothing_to_the_deletion(cloud, tmp_path):
    flags = train(tmp_path, "--steps=5", *NASTY)
    extra = ("--extra=--network=my net", "--ssh=--internal-ip", "--prepare=echo it\\'s > ~/prepared", "--env=A=b c")
    out, _ = finish(start(cloud, "--create", "--type=v6e-16", "--spot", "--delete", *extra, *flags))
    create, copy, install, begin, delete = cloud.commands()
    tpu = ["compute", "tpus", "tpu-vm"]
    assert create == [*tpu, "create", "pod", "--version=v2-alpha-tpuv6e", *ZONE, "--accelerator-type=v6e-16", "--spot",
                      "--network=my net", "--quiet"]  # fmt: skip
    assert copy[:4] == [*tpu, "scp"] and copy[4].endswith("/recvis_jax.tar.gz")
    assert copy[5:] == ["pod:recvis_jax.tar.gz", *ZONE, "--worker=all", "--internal-ip", "--quiet"]
    for words in (install, begin):
        assert words[:-1] == [*tpu, "ssh", "pod", *ZONE, "--worker=all", "--internal-ip", "--quiet"]
    assert delete == [*tpu, "delete", "pod", *ZONE, "--quiet"]
    for host in range(2):
        home = cloud.folder / f"gone_{host}"
        assert (home / "recvis_jax/recvis_jax/train.py").read_text() == (ROOT / "recvis_jax/train.py").read_text()
        assert not (home / "recvis_jax/.venv").exists() and not (home / "recvis_jax/runs").exists()
        assert (home / "prepared").read_text() == "it's\n"
        installed = (home / "python3.txt").read_text().splitlines()
        assert installed[0].startswith("-m pip install") and installed[-1].endswith("/bin/python .[tpu]")
        given = json.loads((tmp_path / f"it is shared/argv_{host}.json").read_text())
        assert given == [*flags[2:]]
    assert out.count("finished\n") == 1 and "process 0 starts at 0\n" in out and "process 1" not in out


@pytest.mark.full
def test_buckets_are_mounted_on_all_hosts(cloud):
    flags = ("--program=counting", "--finished=summary.json", "--workdir=gs://mine/runs/x", "--steps=3")
    kept = ("--text=no gs://third", "--config.checkpoint_dir=gs://fourth/x")
    finish(start(cloud, "--create", *flags, "--data=gs://other", *kept))
    for host in range(2):
        mounts = (cloud.home(host) / "gcsfuse.txt").read_text().splitlines()
        assert [line.split()[-2:] for line in mounts] == [[b, f"{cloud.folder}/gcs/{b}"] for b in ("mine", "other")]
        given = json.loads((cloud.folder / f"gcs/mine/runs/x/argv_{host}.json").read_text())
        assert given[1:] == ["--steps=3", f"--data={cloud.folder}/gcs/other", *kept]
    assert (cloud.folder / "gcs/mine/runs/x/summary.json").exists()


@pytest.mark.full
def test_a_failed_host_makes_all_start_again(cloud, tmp_path):
    flags = train(tmp_path, "--steps=30", "--fail=1:5:kill", "--max_restarts=1", "--create")
    _, err = finish(start(cloud, *flags))
    assert verbs(cloud) == ["create", "scp", "install", "start", "stop", "start"]
    assert "a host failed with exit code 137; starting again (1 of 1)" in err or "exit code 1; starting again" in err
    lives = (tmp_path / "it is shared/lives").read_text().splitlines()
    assert len(lives) == 4 and {line.split()[0] for line in lives[2:]} == {"0", "1"}
    assert "the TPU still exists and costs money" in err


@pytest.mark.full
def test_restarts_end_and_wrong_requests_are_not_tried_again(cloud, tmp_path):
    _, err = finish(start(cloud, *train(tmp_path, "--fail=1:1:3", "--always=1", "--max_restarts=1", "--create")), 3)
    assert "--max_restarts=1 is used up" in err and verbs(cloud).count("start") == 2
    _, err = finish(start(cloud, *train(tmp_path, "--fail=0:1:2", "--always=1", "--delete")), 2)
    assert verbs(cloud).count("start") == 3 and "delete" not in verbs(cloud)


@pytest.mark.full
@pytest.mark.parametrize("queued", [False, True])
def test_a_preempted_tpu_is_created_anew(queued, cloud, tmp_path):
    process = start(cloud, "--queued" if queued else "--create", "--spot", *train(tmp_path, "--steps=60", "--held=1"))
    begun(tmp_path)
    cloud.preempt()
    _, err = finish(process)
    once = ["create", "scp", "install", "start"]
    # Hosts that are seen to die before the TPU is seen to be gone are told to stop, in vain.
    assert [verb for verb in verbs(cloud) if verb != "stop"] == [*once, "delete", *once]
    assert "the TPU pod is PREEMPTED; starting again (1 of 3)" in err
    assert (tmp_path / "it is shared/summary.json").exists()
    if queued:
        words = [words for words in cloud.commands() if words[2] == "queued-resources"]
        create = ["compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod"]
        options = [
            "--runtime-version=v2-alpha-tpuv5-lite",
            *ZONE,
            "--accelerator-type=v5litepod-16",
            "--spot",
            "--quiet",
        ]
        delete = ["compute", "tpus", "queued-resources", "delete", "pod", *ZONE, "--force", "--quiet"]
        assert words == [create + options, delete, create + options]
        assert "WAITING_FOR_RESOURCES; waiting" in err


@pytest.mark.full
def test_the_run_outlives_its_launcher_and_stops_when_told(cloud, tmp_path):
    flags = train(tmp_path, "--create", "--steps=10000")
    process = start(cloud, *flags)
    begun(tmp_path)
    process.send_signal(signal.SIGTERM)
    _, err = finish(process, 130)
    assert "the run continues without this launcher" in err
    process = start(cloud, *flags)
    before = cloud.looks()
    while cloud.looks() < before + 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, 130)
    assert "run in progress; attaching" in err and verbs(cloud).count("start") == 1
    finish(start(cloud, "--stop"))
    reached = int((tmp_path / "it is shared/count_0").read_text())
    assert reached > 0 and (cloud.home(0) / "recvis_run/code").read_text() == "75\n"
    out, _ = finish(start(cloud, *flags[:-1], f"--steps={reached + 5}"))
    assert f"process 0 starts at {reached}\n" in out and "starts at 0\n" not in out
    finish(start(cloud, "--delete"))
    assert verbs(cloud)[-1] == "delete" and not (cloud.folder / "state").exists()


@pytest.mark.full
def test_a_dry_run_prints_what_a_shell_can_run(cloud, tmp_path):
    flags = train(tmp_path, "--steps=5", *NASTY)
    text, _ = finish(start(cloud, "--create", "--delete", "--dry_run", *flags))
    assert not cloud.commands()
    env = {**os.environ, **cloud.env, "PYTHONPATH": str(HERE)}
    subprocess.run(["sh", "-ec", text], check=True, env=env, cwd=tmp_path, timeout=60, capture_output=True)
    assert verbs(cloud) == ["create", "scp", "install", "start", "delete"]
    for host in range(2):
        assert json.loads((tmp_path / f"it is shared/argv_{host}.json").read_text()) == [*flags[2:]]


@pytest.mark.full
def test_what_cannot_run_is_refused_at_once(cloud, tmp_path):
    for flags, message in (
        (("--workdir=runs/x",), "is not a place that the hosts share"),
        (("--config=x",), "--workdir is missing"),
        (("--workdir=/x", "--tpye=v6e-16"), "unknown flag --tpye"),
        (("--workdir=/x",), "the TPU pod is not there; --create creates it."),
    ):
        assert f"{message}" in finish(start(cloud, *flags), 2)[1]
    assert not cloud.commands()
