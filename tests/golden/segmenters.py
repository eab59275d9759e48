"""Makes `tv_fcn_resnet50` and `tv_deeplabv3_resnet50`: torchvision's outputs under synthetic weights.

pip install torch torchvision   # an environment of its own: the tests need neither
python tests/golden/segmenters.py
"""

import json
from pathlib import Path

import fill
import numpy as np
import torch
import torchvision

HERE = Path(__file__).parent
SIZES = {"": (64, 96), "odd_": (65, 81)}


def make(name):
    return getattr(torchvision.models.segmentation, name)(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    ).eval()


def outputs(name, state, x, kind):
    model = make(name)
    model.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in state.items()})
    with torch.no_grad():
        found = model.to(kind)(x.to(kind))
    return {"logits": found["out"].numpy(), "feat_aux": found["aux"].numpy()}


for name in ("fcn_resnet50", "deeplabv3_resnet50"):
    names = [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in make(name).state_dict().items()]
    manifest = {
        "library": "torchvision", "version": torchvision.__version__.partition("+")[0],
        "constructor": f"torchvision.models.segmentation.{name}(weights=None, weights_backbone=None, num_classes=21, "
        "aux_loss=True)", "mode": "eval", "fill_version": fill.VERSION,
        "gain": 1.0, "outputs": {}, "features": {}, "runs": {}, "state_dict": names,
    }  # fmt: skip
    state = fill.state_dict(manifest)
    manifest["state_checksum"] = fill.checksum(state)
    arrays = {}
    for run, size in SIZES.items():
        spec = {"name": "x", "kind": "normal", "seed": 0, "shape": [2, 3, *size], "dtype": "float32"}
        x = torch.from_numpy(fill.make_input(spec))
        exact, single = (outputs(name, state, x, kind) for kind in (torch.float64, torch.float32))
        for key, value in single.items():
            if run and key != "logits":
                continue
            noise, largest = float(np.abs(value - exact[key]).max()), float(np.abs(value).max())
            info = {
                "shape": list(value.shape), "std": float(value.std()), "largest": largest, "noise_vs_float64": noise,
                "atol": max(16 * noise, 2e-6 * largest), "steps": [1, 4, 5, 7],
            }  # fmt: skip
            manifest["features" if key.startswith("feat") else "outputs"][f"{run}{key}"] = info
            arrays[f"{run}{key}"] = fill.take(value, info["steps"])
        if run:
            manifest["runs"][run] = {"inputs": [spec]}
        else:
            manifest["inputs"] = [spec]
    (HERE / f"tv_{name}.json").write_text(json.dumps(manifest, indent=1) + "\n")
    np.savez_compressed(HERE / f"tv_{name}.npz", **arrays)
    print(name, {k: v["noise_vs_float64"] for k, v in manifest["outputs"].items()})
