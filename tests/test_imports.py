"""Who may import whom, and what starting a program may load."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "recvis_jax"
FILES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}
PROGRAMS = {name for name, path in FILES.items() if 'if __name__ == "__main__":' in path.read_text()}

GROUND = ("axes", "columns", "errors", "reading", "ranges", "tried")  # may be imported by everything
# Of ours, what a room may import besides itself, `GROUND` and the bare package; the longest name that fits decides.
# What is in no row may import nothing else of ours; the programs, and `build` and `trained` that work for
# them, everything.
MAY_IMPORT = {
    "operations": ("kernels",),  # and nothing else imports them
    "kernels": (),
    "models": ("operations", "classical"),
    "classical": (),
    "generation": (),
    "classical.storage": ("pretrained.safetensors",),
    "vis": (),
    "data": (),
    "data.opened": ("training.distributed", "training.sharding"),  # which put batches onto devices
    "tasks": (
        "data.fields",
        "evaluation.coco_ap",
        "evaluation.mean_iou",
        "evaluation.metrics",
        "evaluation.translation",
        "generation",
        "operations",
    ),
    "evaluation": ("training.processes",),
    "pretrained": ("trees", "models"),
    "pretrained.run": ("trees", "training.checkpoint", "training.sharding", "training.state"),
    "training": ("trees",),
    "training.loop": ("trees",),
    "training.step": ("tasks.task",),
    "training.distributed": ("data.pipeline",),
    "library": ("",),
    "stepping": ("",),
    "fitting": ("",),
    "finishing": ("",),
    "environment": ("training.log",),
    "evidence": ("",),
    "reporting": ("",),
    "surveying": ("data", "vis"),
    "represent": ("",),
    "looking": ("",),
    "figure": ("network", "vis"),
    "patches": ("vis",),
    "imagining": ("figure", "vis"),
    "network": ("data", "models", "pretrained", "trained"),
    "planning": ("build", "data", "models", "training", "vis.structure"),
    "planning.devices": (),
    "planning.topology": ("planning.devices",),
    "cli": ("training.processes", "overrides"),
    "config": ("overrides",),
    "build": ("",),
    "palette": ("classical.kmeans", "data.sources", "training.distributed"),
    "drawing": ("",),
    "translating": ("",),
    "detections": ("data.given", "data.image_file", "evaluation.coco_ap", "trained", "training.log", "vis.boxes"),
    "segments": ("data.given", "trained", "vis.boxes"),
    "worst_objects": ("build", "trained", "evaluation.coco_ap", "vis.boxes", "vis.run_page"),
    "exporting": ("data.augment", "network", "segments", "trained", "training.log"),
    "publishing": ("card", "data", "pretrained.published", "trained", "training.log"),
    "card": ("evidence", "trained", "trees", "training.log"),
    "checks": ("build", "data.pipeline"),
    "trained": (
        "build",
        "data.data_info",
        "data.given",
        "trees",
        "training.checkpoint",
        "training.optim",
        "data.sources",
        "evaluation",
        "models.layer_head",
        "pretrained.published",
        "training.distributed",
        "training.state",
    ),
    **dict.fromkeys(PROGRAMS, ("",)),
}
# These stand alone: not even their siblings, but for the parts that they were cut into.
ALONE = {
    "trees": (),
    "tasks.losses": (),
    "evaluation.metrics": (),
    "data.fields": (),
    "data.geometry": ("data.fields",),
    "data.transforms": ("data.specs", "data.photometric", "data.geometry", "data.transform_geometry", "data.fields"),
    "data.transform_geometry": ("data.specs", "data.photometric", "data.geometry"),
    "data.augment": ("data.specs", "data.augment_images", "data.augment_fields", "data.fields"),
    "data.augment_fields": ("data.augment_images", "data.fields"),
}


def imports(path: Path) -> set[str]:
    """All modules that a file imports anywhere in it, with names that may themselves be modules."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; the whole name says where a thing comes from"
            out |= {f"{node.module}.{alias.name}" for alias in node.names}
    return out


def ours(path: Path) -> set[str]:
    """Which modules of the package a file imports, as names below the package."""
    found = {name.removeprefix("recvis_jax.") for name in imports(path) if name.startswith("recvis_jax.")}
    modules = set()
    for name in found:  # "models.layers.Acts" is of the module "models.layers"
        while name and name not in FILES and f"{name}.__init__" not in FILES:
            name = name.rpartition(".")[0]
        modules.add(name)
    return modules - {""}


def below(name: str, roof: str) -> bool:
    return not roof or name == roof or name.startswith(f"{roof}.")


@pytest.mark.parametrize("module", FILES)
def test_modules_import_only_what_they_may(module):
    name = module.removesuffix(".__init__")
    if name in ALONE:
        allowed = ALONE[name]
    else:
        rows = [roof for roof in MAY_IMPORT if below(name, roof)]
        room = name.split(".")[0] if "." in module else name
        allowed = (room, *(MAY_IMPORT[max(rows, key=len)] if rows else ()))
    wrong = {m for m in ours(FILES[module]) if m not in GROUND and not any(below(m, roof) for roof in allowed)}
    assert not wrong, f"{name} may import {allowed}"
    assert not ours(FILES[module]) & (PROGRAMS - {name}), "nothing imports a program"


def test_programs_are_found():
    assert {"train", "evaluate", "prepare"} <= PROGRAMS and not any("." in p for p in PROGRAMS)


@pytest.mark.parametrize("module", [name for name in FILES if below(name, "models")])
def test_models_know_no_fast_forms(module):
    words = r"\b(cpu_|own_gradient|platform_dependent|optimization_barrier|tried)"
    assert not re.findall(words, FILES[module].read_text())


@pytest.mark.parametrize("module", FILES)
def test_one_file_draws_and_none_needs_tensorflow(module):
    tops = {name.split(".")[0] for name in imports(FILES[module])}
    assert "matplotlib" not in tops or module == "vis.plot"
    assert not tops & {"tensorflow", "torchvision", "timm"}
    assert "torch" not in tops or module.startswith("pretrained."), "only files of torch's own need it"


HEAVY = ("jax", "flax", "tensorflow", "tensorflow_datasets", "torch", "numpy.random", "matplotlib", "grain", "orbax")


def loaded(*command: str) -> tuple[set[str], str]:
    """The modules that a Python command imports, and what it prints."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}, done.stdout


def test_the_package_is_light():
    assert not loaded("-c", "import recvis_jax")[0] & set(HEAVY)


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_help_imports_nothing_heavy(program):
    modules, text = loaded("-m", f"recvis_jax.{program}", "--help")
    assert "recvis_jax.cli" in modules
    assert not modules & set(HEAVY)
    assert f"python -m recvis_jax.{program}" in text and "--[no]debug" in text


def test_all_programs_can_be_imported_together():
    """In a notebook, for instance: none of them defines a flag before it runs."""
    names = [*(f"recvis_jax.{p}" for p in sorted(PROGRAMS)), "launch.local", "launch.slurm", "launch.gke"]
    names += ["launch.tpu_pod", "launch.sweep", "launch.attempt"]
    _, text = loaded("-c", f"import {', '.join(names)}\nfrom absl import flags\nprint('workdir' in flags.FLAGS)")
    assert text == "False\n"


@pytest.mark.full
def test_training_imports_neither_tensorflow_nor_torch():
    """Everything that a run may need, tfds's reader included."""
    rooms = ("data", "operations", "kernels", "models", "tasks", "training", "evaluation", "vis", "build")
    names = [f"recvis_jax.{m}" for m in FILES if m.split(".")[0] in rooms and not m.endswith("__init__")]
    modules, _ = loaded("-c", f"import {', '.join(names)}; import tensorflow_datasets; tensorflow_datasets.data_source")
    assert "jax" in modules and "tensorflow_datasets" in modules
    assert not modules & {"tensorflow", "torch", "matplotlib"}
