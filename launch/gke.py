"""Writes the Kubernetes objects of a run on GKE: a Job with one pod per host, and a Service for the pods to connect.

  python -m launch.gke --image=us-docker.pkg.dev/mine/repo/recvis_jax --accelerator=tpu-v5-lite-podslice \\
    --topology=4x4 --processes=4 --devices=4 --config=configs/imagenet/vit_s16.py --workdir=gs://bucket/runs/vit \\
    [--apply] [...]

Prints YAML for `kubectl apply -f -`, or applies it with --apply. The image must contain the repository as its working
folder, and a `python` with it installed. The pods share gs://BUCKET/..., mounted at /gcs/BUCKET, or a claim's volume at
/share. Flags that are not listed below go to the program.

If a pod fails, the others fail, too, and Kubernetes restarts all of them, at most --max_restarts times. Restarts after
an eviction or preemption, when the run has saved, are not counted. A wrong request (exit code 2) ends the Job at once.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml  # ml_collections depends on it
from absl import flags

from launch import attempt, buckets, command
from recvis_jax import errors

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this launcher."""
    flags.DEFINE_string("name", None, "Name of the Job; by default that of the workdir.")
    flags.DEFINE_string("namespace", "default", "Namespace.")
    flags.DEFINE_string("image", None, "Image of the container.")
    flags.DEFINE_string("accelerator", None, "GKE's name, such as tpu-v5-lite-podslice or nvidia-h100-80gb.")
    flags.DEFINE_string("topology", None, "Topology of a TPU slice, such as 4x4.")
    flags.DEFINE_integer("processes", 1, "Pods, each with one process; for a TPU slice its hosts.", lower_bound=1)
    flags.DEFINE_integer("devices", 4, "TPU chips or GPUs of each pod.", lower_bound=1)
    flags.DEFINE_string("service_account", None, "Kubernetes service account, for access to buckets.")
    flags.DEFINE_string("claim", None, "PersistentVolumeClaim to mount at /share.")
    flags.DEFINE_bool("spot", False, "Use spot nodes.")
    flags.DEFINE_multi_string("env", [], "NAME=VALUE for the program's environment; repeatable.")
    flags.DEFINE_integer("grace", 120, "Seconds for an evicted pod to save.", lower_bound=0)
    flags.DEFINE_integer("max_restarts", 3, "How often all pods are started again.", lower_bound=0)
    flags.DEFINE_bool("apply", False, "Apply the objects with kubectl.")
    command.define_flags()
    flags.adopt_module_key_flags(command)
    attempt.define_flags()
    flags.adopt_module_key_flags(attempt)


_PORT = 8476  # of process 0, to which all connect


def main(passed: list[str]) -> int:
    workdir = command.workdir(passed)
    accelerator = FLAGS.accelerator
    if not accelerator or not FLAGS.image:
        raise errors.BadRequest("--image and --accelerator are needed, such as --accelerator=tpu-v5-lite-podslice.")
    if not workdir.startswith(("gs://", *(["/share/"] if FLAGS.claim else []))):
        raise errors.BadRequest(f"--workdir={workdir} is not a place that the pods share, such as gs://bucket/runs/x.")
    if accelerator.startswith("tpu") and not FLAGS.topology:
        raise errors.BadRequest("--topology is missing, for instance --topology=4x4.")
    command.check(passed)
    name = FLAGS.name or command.job_name(workdir)
    passed, mounted = buckets.localized(passed)
    text = yaml.safe_dump_all([_service(name), _job(name, accelerator, passed, mounted)], sort_keys=False, width=1000)
    apply = ["kubectl", "apply", "-f", "-"]
    if not FLAGS.apply:
        print(text, end="")
        return 0
    if FLAGS.dry_run:
        print(f"{command.shown(apply)} <<'END_OF_YAML'\n{text}END_OF_YAML")
        return 0
    try:
        done = subprocess.run(apply, input=text, text=True)
    except FileNotFoundError as e:
        raise errors.BadRequest("there is no kubectl here; see https://kubernetes.io/docs/tasks/tools.") from e
    if done.returncode:
        raise errors.Failure(f"kubectl refused the Job {name}; if it exists already, delete it first.")
    at = f"--namespace={FLAGS.namespace}"
    print(
        f"state:  kubectl get pods {at} -l job-name={name}\n"
        f"output: kubectl logs {at} -f -l job-name={name},batch.kubernetes.io/job-completion-index=0\n"
        f"stop:   kubectl delete {at} job/{name} service/{name}"
    )
    return 0


def _service(name: str) -> dict[str, Any]:
    """Returns the headless Service that gives each pod a host name, even before it is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": FLAGS.namespace},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": name}},
    }


def _job(name: str, accelerator: str, passed: list[str], mounted: list[str]) -> dict[str, Any]:
    """Returns the Job; its pods differ only in their index."""
    count = FLAGS.processes
    rules: list[dict[str, Any]] = [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "run", "operator": "In", "values": [command.BAD_REQUEST]},
        },
        {"action": "Ignore", "onExitCodes": {"containerName": "run", "operator": "In", "values": [command.STOPPED]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": FLAGS.namespace},
        "spec": {
            "completionMode": "Indexed",
            "completions": count,
            "parallelism": count,
            "backoffLimit": FLAGS.max_restarts * count,  # counts pods, and all of them fail together
            "podReplacementPolicy": "Failed",  # never two pods of one index
            "podFailurePolicy": {"rules": rules},
            "template": _template(name, accelerator, passed, mounted),
        },
    }


def _template(name: str, accelerator: str, passed: list[str], mounted: list[str]) -> dict[str, Any]:
    """Returns the pods' template."""
    tpu = accelerator.startswith("tpu")
    resource = {"google.com/tpu" if tpu else "nvidia.com/gpu": FLAGS.devices}
    selector = {f"cloud.google.com/gke-{'tpu-' if tpu else ''}accelerator": accelerator}
    if tpu:
        selector["cloud.google.com/gke-tpu-topology"] = FLAGS.topology or ""
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]  # for the input workers
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    for i, bucket in enumerate(mounted):
        volumes.append(buckets.volume(bucket, f"bucket-{i}"))
        mounts.append({"name": f"bucket-{i}", "mountPath": f"{buckets.ROOT}/{bucket}"})
    if FLAGS.claim:
        volumes.append({"name": "share", "persistentVolumeClaim": {"claimName": FLAGS.claim}})
        mounts.append({"name": "share", "mountPath": "/share"})
    annotations = {"gke-gcsfuse/volumes": "true"} if mounted else {}
    spec: dict[str, Any] = {
        "subdomain": name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": FLAGS.grace,
        "nodeSelector": selector,
        "containers": [
            {
                "name": "run",
                "image": FLAGS.image,
                "command": _command(name, passed),
                "env": [dict(zip(("name", "value"), e.split("=", 1), strict=True)) for e in _environment()],
                "ports": [{"containerPort": _PORT}, *([{"containerPort": 8471}] if tpu else [])],  # 8471: the TPU's own
                "resources": {"requests": resource, "limits": {**resource}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if FLAGS.service_account:
        spec["serviceAccountName"] = FLAGS.service_account
    if FLAGS.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        spec["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        ]
    return {"metadata": {"annotations": annotations}, "spec": spec} if annotations else {"spec": spec}


def _environment() -> list[str]:
    for pair in FLAGS.env:
        if "=" not in pair:
            raise errors.BadRequest(f"--env={pair} is not NAME=VALUE.")
    return [*FLAGS.env, "PYTHONUNBUFFERED=1"]


def _command(name: str, passed: list[str]) -> list[str]:
    """Returns the words of the container's command, in which Kubernetes replaces $(NAME), and $$ by $."""
    finished = attempt.finished_file()
    words = [*([f"--finished={finished}"] if finished else []), FLAGS.program, *passed]
    words = command.python("launch.attempt", words, "python")
    words = [word.replace("$", "$$") for word in words]
    if FLAGS.processes == 1:
        return [*words, "--distributed=off"]
    meet = [f"--coordinator={name}-0.{name}:{_PORT}", f"--num_processes={FLAGS.processes}"]
    return [*words, *meet, "--process_id=$(JOB_COMPLETION_INDEX)"]


if __name__ == "__main__":
    command.run(main, define_flags)
