"""Training steps and inference against PyTorch, float32, both sides in turn.

  make bench-setup && python benchmarks/models.py [--rows=ViT] [--kinds=train,inference]

Both sides start from uint8 images in memory, normalise them, and compute a whole step (gradients and the optimizer's
update) or the outputs in evaluation. PyTorch's fastest form of eager, channels last and `torch.compile` is found first
and measured in full; beside it the same with THP_MEM_ALLOC_ENABLE=1, as our programs ask for huge pages themselves.
`ratio` is PyTorch's time over ours, above 1 where we are faster: the median of the rounds, with quartiles. MFU is the
model's theoretical arithmetic over that of a matrix product measured in the same run. Rows that are not measured keep
what was found last, and so do those of another version of JAX: the table shows each row with the newest one that it was
measured with, beside it the ratio with the one before. Processors without AVX-512 have a table of their own.
"""

import os
import statistics
import sys
from pathlib import Path
from typing import Any

import sides
from absl import app, flags

_ROWS = flags.DEFINE_list("rows", [], "Only the rows whose name starts so.")
_KINDS = flags.DEFINE_list("kinds", ["train", "inference"], "What is measured.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds of both sides.", 1)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Least seconds of a measurement.")
_FORMS = flags.DEFINE_list("forms", ["eager", "channels_last", "compile"], "PyTorch's forms.")
_TORCH = flags.DEFINE_string("torch", ".venv-bench/bin/python", "Python that has PyTorch, torchvision and timm.")

HERE = Path(__file__).parent
CONVMIXER = dict(name="convmixer_768_32", width=256, depth=8, kernel_size=9, activation="gelu")
MAE = dict(name="mae_b16", width=384, heads=6)

# name -> our model, PyTorch's, task, optimizer, batch, size of the images, targets of training and of inference.
ROWS: dict[str, tuple[dict[str, Any], str, str, str, int, int, float, float | None]] = {
    "LeNet": (dict(name="lenet5"), "LeNet5", "classify", "sgd", 256, 28, 1.0, 1.0),
    "ResNet-20": (dict(name="resnet20"), "ResNet20", "classify", "sgd", 128, 32, 1.0, 1.0),
    "ResNet-18": (dict(name="resnet18"), "resnet18", "classify", "sgd", 16, 224, 0.95, 1.0),
    "ResNet-50": (dict(name="resnet50"), "resnet50", "classify", "sgd", 8, 224, 0.95, 1.0),
    "ViT-S/16": (dict(name="vit_s16"), "vit_small_patch16_224", "classify", "adamw", 16, 224, 1.0, 1.0),
    "Mixer-S/16": (dict(name="mixer_s16"), "mixer_s16_224", "classify", "adamw", 16, 224, 1.0, 1.0),
    "ConvMixer-256/8": (CONVMIXER, "convmixer", "classify", "adamw", 8, 224, 0.5, None),
    "MAE ViT-S/16": (MAE, "MAE", "mae", "adamw", 16, 224, 1.0, 1.0),
}


def title(name: str, kind: str) -> str:
    return f"{name}, batch {ROWS[name][4]}, {kind}"


def compare(name: str, kind: str) -> dict[str, Any]:
    """Measures a row; raises RuntimeError if the two sides do not train the same parameters."""
    model, theirs, task, optim, batch, size, *targets = ROWS[name]
    work = dict(task=task, optim=optim, batch=batch, size=size, train=kind == "train")
    python = Path(_TORCH.value)
    if not python.exists():
        raise SystemExit(f"error: there is no {python}: run `make bench-setup`, or name a Python by --torch.")
    command = [str(python), str(HERE / "torch_side.py")]
    env = {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    with sides.Side([sys.executable, str(HERE / "jax_side.py")], **env) as ours:
        found = ours.call("prepare", model=model, **work)
        forms, failed = {}, {}
        try:
            for form in _FORMS.value:
                side = forms[form] = sides.Side(command, **env)
                side.call("about", threads=os.cpu_count())
                try:
                    there = side.call("prepare", model=theirs, form=form, **work)
                except RuntimeError as e:
                    failed[form] = str(e)
                    continue
                if there["parameters"] != found["parameters"]:
                    counts = f"{found['parameters']:,} parameters here, {there['parameters']:,} there"
                    raise RuntimeError(f"{name}: {counts}")
            trial = {
                form: min(side.call("measure", least=_SECONDS.value / 2)["wall"] for _ in range(2))
                for form, side in forms.items()
                if form not in failed
            }
            best = min(trial, key=trial.__getitem__)
            side = forms[best]
            huge = forms["huge pages"] = sides.Side(command, **env, THP_MEM_ALLOC_ENABLE="1")
            huge.call("about", threads=os.cpu_count())
            huge.call("prepare", model=theirs, form=best, **work)
            version = ours.call("version")
            peak = max(ours.call("gemm"), side.call("gemm"))
            a, b, c = sides.interleave([ours, side, huge], _ROUNDS.value, _SECONDS.value)
            memory = [s.call("peak_memory") for s in (ours, huge)]
        finally:
            for side in forms.values():
                side.__exit__()
    seconds, others = [m["wall"] for m in a], [m["wall"] for m in b]
    wall, other = statistics.median(seconds), statistics.median(others)
    return {
        "name": title(name, kind),
        "jax": version,
        **sides.ratio(others, seconds),
        "target": targets[kind != "train"],
        "cpu_ratio": sides.ratio([m["cpu"] for m in b], [m["cpu"] for m in a])["ratio"],
        "huge_ratio": sides.ratio([m["wall"] for m in c], seconds)["ratio"],
        "images_per_s": batch / wall,
        "torch_images_per_s": batch / other,
        "mfu": found["flops"] / wall / peak,
        "torch_mfu": found["flops"] / other / peak,
        "peak_gb": memory[0] / 1e9,
        "torch_peak_gb": memory[1] / 1e9,
        "gemm_gflops": peak / 1e9,
        "torch_form": best,
        "torch_forms_ms": {form: round(1000 * t, 2) for form, t in trial.items()},
        "torch_failed": failed,
        "load": sides.load(),
        "machine": sides.machine(),
    }


COLUMNS = {
    "float32": "{name}",
    "speed / PyTorch's": "{ratio:.2f} ({spread[0]:.2f}-{spread[1]:.2f})",
    "JAX": "{jax}",
    "with an older one": "{older}",
    "target": "{target:.2f}",
    "PyTorch with huge pages": "{huge_ratio:.2f}",
    "CPU-seconds": "{cpu_ratio:.2f}",
    "images/s": "{images_per_s:,.0f}",
    "PyTorch's": "{torch_images_per_s:,.0f}",
    "MFU": "{mfu:.0%}",
    "PyTorch's MFU": "{torch_mfu:.0%}",
    "peak memory, GB": "{peak_gb:.1f}",
    "PyTorch's ": "{torch_peak_gb:.1f}",
    "its form": "{torch_form}",
    "load": "{load}",
    "on": "{machine}",
}


def newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of the table: each with the newest JAX that it was measured with, and the ratio with another."""
    out = []
    for name in (title(name, kind) for kind in ("train", "inference") for name in ROWS):
        found = sorted((row for row in rows if row["name"] == name), key=lambda row: release(row["jax"]))
        if found:
            older = f"{found[-2]['ratio']:.2f} ({found[-2]['jax']})" if len(found) > 1 else ""
            out.append({**found[-1], "older": older})
    return out


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def main(argv: list[str]) -> None:
    del argv
    table = "models" if "AVX-512" in sides.machine() else "models_avx2"
    kept = {(row["name"], row["jax"]): row for row in sides.load_rows(table) if "jax" in row}
    for kind in _KINDS.value:
        for name in ROWS:
            if not _ROWS.value or any(name.startswith(r) for r in _ROWS.value):
                row = compare(name, kind)
                kept[row["name"], row["jax"]] = row
                print(COLUMNS["speed / PyTorch's"].format(**row), row["name"], file=sys.stderr, flush=True)
                sides.save(table, list(kept.values()), COLUMNS, shown=newest(list(kept.values())))


if __name__ == "__main__":
    app.run(main)
