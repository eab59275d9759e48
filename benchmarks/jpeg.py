"""Streaming JPEG, as training on ImageNet reads it: 500x375 -> decode, random resized crop to 224, flip; on the CPU.

  make bench-setup && python benchmarks/jpeg.py

Both sides read the same folder of photographs (crops of scikit-learn's two), and give batches of 64 as float32.
`ratio` is our images per CPU-second over torchvision's, of whose two ways (PIL images, or tensors from its own decoder)
the faster counts. All threads count; wall time with both processors is beside it.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sides
from absl import app, flags

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds of both sides.", 1)
_IMAGES = flags.DEFINE_integer("images", 256, "Images of a measurement.", 64)
_TORCH = flags.DEFINE_string("torch", ".venv-bench/bin/python", "Python that has PyTorch and torchvision.")

HERE = Path(__file__).parent


def photographs(folder: Path, count: int) -> None:
    """Writes JPEGs of 500x375, quality 90: crops of photographs at several scales."""
    import cv2
    from sklearn.datasets import load_sample_images

    rng, sources = np.random.default_rng(0), load_sample_images().images
    for i in range(count):
        picture = sources[i % len(sources)]
        scale = rng.uniform(0.9, 2.0)
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        top, left = (int(rng.integers(0, s - n + 1)) for s, n in zip(picture.shape, (375, 500), strict=False))
        crop = cv2.cvtColor(picture[top : top + 375, left : left + 500], cv2.COLOR_RGB2BGR)
        (folder / f"class{i % 4}").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"class{i % 4}/{i:04}.jpg"), crop, [cv2.IMWRITE_JPEG_QUALITY, 90])


def main(argv: list[str]) -> None:
    del argv
    env = {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    count = _IMAGES.value // 64 * 64
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photographs"
        photographs(folder, count)
        kilobytes = statistics.mean(f.stat().st_size for f in folder.rglob("*.jpg")) / 1000
        with (
            sides.Side([sys.executable, str(HERE / "jax_side.py")], **env) as ours,
            sides.Side([_TORCH.value, str(HERE / "torch_side.py")], **env) as pil,
            sides.Side([_TORCH.value, str(HERE / "torch_side.py")], **env) as tensor,
        ):
            ours.call("prepare_jpeg", folder=str(folder), images=count)
            for side, form in ((pil, "pil"), (tensor, "tensor")):
                side.call("about", threads=1)
                side.call("prepare_jpeg", folder=str(folder), form=form)
            trial = {form: side.call("measure", least=1)["cpu"] for form, side in (("pil", pil), ("tensor", tensor))}
            best = min(trial, key=trial.__getitem__)
            theirs = {"pil": pil, "tensor": tensor}[best]
            a, b = sides.interleave([ours, theirs], _ROUNDS.value, 1)
    row: dict[str, Any] = {
        "name": f"JPEG 500x375 ({kilobytes:.0f} kB) to 224",
        **sides.ratio([m["cpu"] for m in b], [m["cpu"] for m in a]),
        "target": 1.0,
        "images_per_cpu_s": count / statistics.median(m["cpu"] for m in a),
        "torchvision_per_cpu_s": count / statistics.median(m["cpu"] for m in b),
        "images_per_s": count / statistics.median(m["wall"] for m in a),
        "form": best,
        "load": sides.load(),
    }
    columns = {
        "": "{name}",
        "images per CPU-second / torchvision's": "{ratio:.2f} ({spread[0]:.2f}-{spread[1]:.2f})",
        "target": "{target:.2f}",
        "ours": "{images_per_cpu_s:,.0f}",
        "torchvision's": "{torchvision_per_cpu_s:,.0f} ({form})",
        "ours a second of the clock": "{images_per_s:,.0f}",
    }
    sides.save("jpeg", [row], columns)


if __name__ == "__main__":
    app.run(main)
