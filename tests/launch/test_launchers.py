"""What all launchers share: help, light imports, and whose flag is whose."""

import re
import subprocess
import sys

import pytest
from cluster import ROOT

LAUNCHERS = ["local", "slurm", "tpu_pod", "gke", "sweep"]
HEAVY = {"jax", "flax", "numpy", "tensorflow", "tensorflow_datasets", "matplotlib", "grain", "orbax", "ml_collections"}


def run(*words, code=0):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_help_explains_and_imports_nothing_heavy(launcher):
    out, err = run("-X", "importtime", "-m", f"launch.{launcher}", "--help")
    assert f"python -m launch.{launcher} " in out and "--[no]dry_run" in out and "--program" in out
    assert "--coordinator" not in out, "of the program"
    assert not {line.rpartition("|")[2].strip() for line in err.splitlines()} & HEAVY
    as_file, _ = run(f"launch/{launcher}.py", "--help")
    assert as_file.replace(f"launch/{launcher}.py:", "") == out.replace(f"{ROOT}/launch/{launcher}.py:", "")
    documented = set(re.findall(r"--([a-z_]{2,})", out.partition("Flags:")[0])) - {"config", "workdir"}
    assert documented <= set(re.findall(r"^  --(?:\[no\])?(\w+):", out, re.MULTILINE))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_wrong_value_is_one_line(launcher):
    _, err = run("-m", f"launch.{launcher}", "--dry_run=perhaps", code=2)
    assert err.startswith("error: ") and err.count("\n") == 1


def test_flags_are_split_wherever_they_stand():
    words = [
        "--config.x=1",
        "--devices",
        "4",
        "-y",
        "--nodry_run",
        "a b",
        "--dry_run",
        "--processes=2",
        "--",
        "--devices=8",
    ]
    out, _ = run("-m", "launch.local", "--workdir=w", *words)
    assert out.count("device_count=4") == 2
    assert all("--workdir=w --config.x=1 -y 'a b' --devices=8 --coordinator" in line for line in out.splitlines()[:2])
