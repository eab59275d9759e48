"""launch.gke: what it writes passes Kubernetes' own schemas, and its pods run the program as it was given."""

import json
import os
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from cluster import HERE, ROOT

NASTY = ['--text=it\'s "a" $HOME $(HOME) $$ `date` \\ * %j', "--other=", "--lines=a\nb", "--word=true", "--number=1"]
TPU = ("--image=repo/x:1", "--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--processes=4")
GPU = ("--image=repo/x:1", "--accelerator=nvidia-h100-80gb", "--processes=2", "--devices=8")
FULL = (
    "--claim=disk",
    "--config.data.dir=gs://other/x",
    "--spot",
    "--service_account=me",
    "--namespace=lab",
    "--env=A=b: c",
    "--env=LIBTPU_INIT_ARGS=--x=1",
)
COUNTING = ("--program=counting", "--finished=summary.json")
ENV = {**os.environ, "PYTHONPATH": f"{HERE}:{ROOT}"}


def launch(*flags, code=0, **env):
    command = [sys.executable, "-m", "launch.gke", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENV, **env}, cwd=ROOT, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def objects(*flags):
    return list(yaml.safe_load_all(launch(*COUNTING, *flags)))


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
@pytest.mark.parametrize("flags", [TPU, (*TPU, *FULL), GPU, (*GPU, *FULL), (*GPU, "--processes=1")])
def test_every_object_passes_the_strict_schemas(version, flags):
    service, job = objects(*flags, "--workdir=gs://mine/runs/A Name_1", *NASTY)
    for each in (service, job):
        kubernetes_validate.validate(each, version, strict=True)
    job["spec"]["template"]["spec"]["restart"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, version, strict=True)


def test_pods_meet_at_the_name_of_the_first_and_restart_together():
    service, job = objects(*TPU, "--workdir=gs://mine/runs/A Name_1", "--max_restarts=5")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    name = job["metadata"]["name"]
    assert name == service["metadata"]["name"] == pod["subdomain"] == "a-name-1"
    assert service["spec"]["selector"] == {"job-name": name} and service["spec"]["clusterIP"] == "None"
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 4
    assert spec["backoffLimit"] == 20 and pod["restartPolicy"] == "Never"
    actions = [
        (rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in spec["podFailurePolicy"]["rules"]
    ]
    assert actions == [("FailJob", [2]), ("Ignore", [75]), ("Ignore", None)]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert f"--coordinator={name}-0.{name}:8476" in container["command"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice", "cloud.google.com/gke-tpu-topology": "4x4"
    }  # fmt: skip


def expand(word, variables):
    """Replaces $(NAME) and $$ as Kubernetes does in commands."""
    return re.sub(r"\$(\$|\((\w+)\))", lambda m: "$" if m[1] == "$" else variables.get(m[2], m[0]), word)


def test_pods_run_the_program_as_it_was_given(tmp_path):
    """The command of every pod, run here: its arguments, and the exit codes by which the Job goes on or ends."""
    flags = ("--workdir=gs://mine/a b", "--steps=5", *NASTY)
    pod = objects(*GPU, *flags)[1]["spec"]["template"]
    assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    (container,) = pod["spec"]["containers"]
    (bucket,) = [v for v in pod["spec"]["volumes"] if "csi" in v]
    assert bucket["csi"]["volumeAttributes"]["bucketName"] == "mine"
    (mount,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == bucket["name"]]
    commands = [[expand(w, {"JOB_COMPLETION_INDEX": str(i)}) for w in container["command"]] for i in range(2)]
    commands = [[word.replace(mount, str(tmp_path)) for word in words] for words in commands]
    assert commands[0][0] == "python"
    pods = [subprocess.Popen([sys.executable, *words[1:]], env=ENV, cwd=ROOT) for words in commands]
    assert [pod.wait(60) for pod in pods] == [0, 0]
    for i in range(2):
        *given, coordinator, count, index = json.loads((tmp_path / f"a b/argv_{i}.json").read_text())
        assert (
            given == [f"--workdir={tmp_path}/a b", *flags[1:]]
            and count == "--num_processes=2"
            and index == f"--process_id={i}"
        )
        assert coordinator == "--coordinator=a-b-0.a-b:8476"


def test_objects_are_applied_or_shown(tmp_path):
    """With a stand-in for kubectl that keeps what it is handed."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words; cat > {tmp_path}/input\n')
    kubectl.chmod(0o755)
    flags = (*COUNTING, *TPU, "--workdir=gs://mine/x", *NASTY)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    text = launch(*flags)
    dry = launch(*flags, "--apply", "--dry_run", **path)
    assert not (tmp_path / "input").exists()
    said = launch(*flags, "--apply", **path)
    assert (tmp_path / "words").read_text() == "apply -f -\n" and (tmp_path / "input").read_text() == text
    assert "kubectl logs --namespace=default -f -l job-name=x," in said
    (tmp_path / "input").unlink()
    subprocess.run(["sh", "-ec", dry], check=True, env={**os.environ, **path}, timeout=60)
    assert (tmp_path / "input").read_text() == text


@pytest.mark.full
def test_what_cannot_run_is_refused():
    for flags, message in (
        (("--workdir=runs/x", *TPU), "is not a place that the pods share"),
        (("--workdir=/share/x", *TPU), "is not a place that the pods share"),
        (TPU, "--workdir is missing"),
        (("--workdir=gs://x/y", *TPU[:2]), "--topology is missing"),
        (("--workdir=gs://x/y", TPU[1]), "--image and --accelerator are needed"),
        (("--workdir=gs://x/y", *TPU, "--acelerator=x"), "unknown flag --acelerator"),
        (("--workdir=gs://x/y", *TPU, "--env=x"), "--env=x is not NAME=VALUE"),
    ):
        assert message in launch(*flags, code=2)
