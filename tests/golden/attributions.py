"""Makes `captum_*.npz`: attributions of captum and pytorch-grad-cam, of networks with the weights of other fixtures.

    pip install torch torchvision timm captum grad-cam   # an environment of its own: the tests need none of them
    python tests/golden/attributions.py [tv_resnet18 ...]

Everything is computed in float64 and stored in float32. Of images whose seeds are 0, 1, 2, ... the first are taken of
which float32 gives the same within 3e-6 of the largest value: at others a relu near zero is open in one and closed in
the other, and no two programs agree. captum sees modules alone, so that functional and shared relus become modules.
"""

import copy
import json
import sys
from pathlib import Path
from types import MethodType

import fill
import numpy as np
import timm
import torch
import torchvision
from captum import attr
from pytorch_grad_cam import GradCAM
from torch import nn
from torchvision.models.googlenet import BasicConv2d
from torchvision.models.resnet import BasicBlock

HERE = Path(__file__).parent
TARGETS = (3, 815)
AGREE = 3e-6
FILL = 0.25  # the baseline of integrated gradients, and what occlusion covers with
POINTS = 4  # of integrated gradients: each is another chance of a flip


def own_relus(model):
    """Gives each call of a relu a module of its own, that is not in place."""

    def block(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu2(y + (self.downsample(x) if self.downsample else x))

    def conv(self, x):
        return self.relu(self.bn(self.conv(x)))

    for module in [*model.modules()]:
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if isinstance(module, BasicBlock):
            module.relu2, module.forward = nn.ReLU(), MethodType(block, module)  # which a deep copy binds anew
        if isinstance(module, BasicConv2d):
            module.relu, module.forward = nn.ReLU(), MethodType(conv, module)
    return model


# Fixture of the weights: constructor, side of the images, step of what is stored, window and stride of the occlusion,
# and of Grad-CAM our name of a layer -> theirs.
MODELS = {
    "tv_vgg11": (
        lambda: own_relus(torchvision.models.vgg11()), 32, 1, 12, 8,
        {"stage4/block2": lambda m: m.features[14], "stage5_conv2": lambda m: m.features[18]},
    ),
    "tv_resnet18": (
        lambda: own_relus(torchvision.models.resnet18()), 64, 2, 24, 16,
        {"stage3/block2": lambda m: m.layer3, "stage4_block2/conv2": lambda m: m.layer4[1].conv2},
    ),
    "tv_googlenet": (
        lambda: own_relus(torchvision.models.googlenet(aux_logits=False, transform_input=False, init_weights=False)),
        64, 2, 24, 16,
        {"stage3/block5": lambda m: m.inception4e, "inception5a/branch2_1": lambda m: m.inception5a.branch2[1]},
    ),
    "timm_vit_tiny_patch16_224": (
        lambda: timm.create_model("vit_tiny_patch16_224"), 224, 7, 80, 64,
        {"block11/norm1": lambda m: m.blocks[11].norm1, "block7": lambda m: m.blocks[7]},
    ),
}  # fmt: skip


def images(seed, side):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, side, side), np.float32))


def as_maps(tokens):
    """The patches' tokens as maps, for pytorch-grad-cam."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)


def gradcam(model, layer, x):
    if hasattr(model, "blocks"):
        with GradCAM(model, [layer], reshape_transform=as_maps) as cam:
            cam.activations_and_grads(x)  # hooks are called
            out = cam.activations_and_grads(x)
            model.zero_grad()
            sum(out[i, t] for i, t in enumerate(TARGETS)).backward()
            acts, grads = (
                y[0].detach().numpy()
                for y in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
            )
            return torch.from_numpy(np.maximum(cam.get_cam_image(x, layer, None, acts, grads, False), 0))
    return attr.LayerGradCam(model, layer).attribute(x, torch.tensor(TARGETS), relu_attributions=True)[:, 0]


def methods(side, window, stride, layers):
    """Yields (name of the attribution, how the oracle computes it of a model and images)."""
    target = torch.tensor(TARGETS)
    yield "gradient", lambda m, x: attr.Saliency(m).attribute(x, target, abs=False)
    yield (
        "integrated_gradients",
        lambda m, x: attr.IntegratedGradients(m).attribute(x, torch.full_like(x, FILL), target, n_steps=POINTS),
    )
    yield "gradient_x_input", lambda m, x: attr.InputXGradient(m).attribute(x, target)
    if side < 224:  # a network with relus
        yield "guided_backpropagation", lambda m, x: attr.GuidedBackprop(copy.deepcopy(m)).attribute(x, target)
        yield "deconvnet", lambda m, x: attr.Deconvolution(copy.deepcopy(m)).attribute(x, target)
    for name, layer in layers.items():
        yield f"gradcam:{name}", lambda m, x, layer=layer: gradcam(m, layer(m), x)
    size, step = (3, window, window), (3, stride, stride)
    yield (
        "occlusion",
        lambda m, x: attr.Occlusion(m).attribute(x, size, step, baselines=FILL, target=target)[:, 0],
    )


def attributions(model, x, *how):
    """Returns {name: array in float64} and {name: by how much float32 misses it}; None where a relu flips."""
    found, noise, single = {}, {}, copy.deepcopy(model).float()
    for name, compute in methods(*how):
        rough = compute(single, x).detach().numpy()
        found[name] = exact = compute(model, x.double()).detach().numpy()
        noise[name] = float(np.abs(rough - exact).max() / np.abs(exact).max())
        print(" ", name, f"{noise[name]:.0e}", flush=True)
        if noise[name] > AGREE and name != "occlusion":  # which is a difference of scores, and has their noise
            return None
    return found, noise


def main():
    torch.set_num_threads(2)
    for name in sys.argv[1:] or MODELS:
        construct, side, step, window, stride, layers = MODELS[name]
        manifest = json.loads((HERE / f"{name}.json").read_text())
        model = construct().eval()
        model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in fill.state_dict(manifest).items()})
        for seed in range(100):
            print(name, seed, flush=True)
            found = attributions(model.double(), images(seed, side), side, window, stride, layers)
            if found:
                break
        else:
            raise SystemExit(f"{name}: no images at which float32 and float64 agree")
        values, noise = found
        kept = {k: (v[..., ::step, ::step] if v.shape[-1] == side else v).astype(np.float32) for k, v in values.items()}
        about = dict(seed=seed, side=side, step=step, window=window, stride=stride, fill=FILL, points=POINTS)
        about |= dict(targets=TARGETS, noise=noise)
        np.savez_compressed(HERE / f"captum_{name}.npz", about=json.dumps(about), **kept)


if __name__ == "__main__":
    main()
