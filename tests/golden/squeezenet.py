"""Makes `tv_squeezenet1_*`: torchvision's outputs under synthetic weights, as the other fixtures of this folder.

pip install torch torchvision   # an environment of its own: the tests need neither
python tests/golden/squeezenet.py
"""

import json
from pathlib import Path

import fill
import numpy as np
import torch
import torchvision

HERE = Path(__file__).parent
GAIN = 1.4  # without norms, a gain of 1 lets the signal die out with depth


def outputs(model, x):
    kept = {}
    model.features.register_forward_hook(lambda m, i, o: kept.__setitem__("feat_features", o))
    with torch.no_grad():
        kept["logits"] = model(x)
    return {k: v.numpy() for k, v in kept.items()}


for name in ("squeezenet1_0", "squeezenet1_1"):
    model = getattr(torchvision.models, name)().eval()
    names = [[k, list(v.shape), "float32"] for k, v in model.state_dict().items()]
    runs = {"": 79, "odd_": 97}
    manifest = {
        "library": "torchvision", "version": torchvision.__version__.partition("+")[0],
        "constructor": f"torchvision.models.{name}(weights=None)", "mode": "eval", "fill_version": fill.VERSION,
        "gain": GAIN, "outputs": {}, "features": {}, "runs": {}, "state_dict": names,
    }  # fmt: skip
    state = fill.state_dict({**manifest, "state_dict": names})
    manifest["state_checksum"] = fill.checksum(state)
    arrays = {}
    for run, side in runs.items():
        spec = {"name": "x", "kind": "normal", "seed": 0, "shape": [2, 3, side, side], "dtype": "float32"}
        x = torch.from_numpy(fill.make_input(spec))
        exact = {}
        for kind in (torch.float64, torch.float32):
            copy = getattr(torchvision.models, name)().eval()
            copy.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
            exact[kind] = outputs(copy.to(kind), x.to(kind))
        for key, value in exact[torch.float32].items():
            if run and key != "logits":
                continue
            noise = float(np.abs(value - exact[torch.float64][key]).max())
            largest = float(np.abs(value).max())
            info = {
                "shape": list(value.shape), "std": float(value.std()), "largest": largest,
                "noise_vs_float64": noise, "atol": max(16 * noise, 2e-6 * largest),
            }  # fmt: skip
            if value.ndim == 4:
                info["steps"] = [1, 8, 2, 2]
                value = fill.take(value, info["steps"])
            manifest["features" if key.startswith("feat") else "outputs"][f"{run}{key}"] = info
            arrays[f"{run}{key}"] = value
        if run:
            manifest["runs"][run] = {"inputs": [spec]}
        else:
            manifest["inputs"] = [spec]
    (HERE / f"tv_{name}.json").write_text(json.dumps(manifest, indent=1) + "\n")
    np.savez_compressed(HERE / f"tv_{name}.npz", **arrays)
    print(name, {k: v["noise_vs_float64"] for k, v in manifest["outputs"].items()})
