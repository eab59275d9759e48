"""Deterministic synthetic weights for checkpoint-import tests.

Version 1.

Every tensor of a state dict is a function of its NAME and SHAPE (and one number,
``gain``, written in the fixture's manifest), so that a fixture needs to hold only
the names, shapes and outputs.  Needs numpy and zlib only.

    fill(name, shape, gain=1.0)   one tensor
    state_dict(manifest)          {name: array} for a whole manifest
    make_input(spec)              one input array from a manifest's "inputs"
    take(array, steps)            the strided slice under which features are stored
    checksum(state)               [sum, sum of absolute values], to compare with the
                                  manifest's "state_checksum"

The rule.  n = rng.standard_normal(shape, dtype=float32) with
rng = numpy.random.default_rng(zlib.crc32(name.encode("utf-8"))); ``leaf`` is what
follows the last dot of ``name``.  The first line that matches holds:

    leaf                                      value
    num_batches_tracked                       0 (int64)
    running_mean                              0.1 * n
    running_var                               1 + 0.1 * |n|
    alpha (affine scale of ResMLP)            1 + 0.1 * n
    gamma..., ls1, ls2, lambda_1, ...         0.2 + 0.05 * n          (layer scale)
      (LAYER_SCALE below)
    cls_token, pos_embed, ...                 gain * 0.2 * n
      (TOKENS below: tokens, absolute and
      relative position tables)
    "weight" of an embedding, its parent      gain * n
      being wte, query_embed, ...
      (EMBEDDINGS below)
    no dimension (logit_scale)                1 + 0.1 * n
    one dimension, leaf "weight" (norms)      1 + 0.1 * n
    one dimension, or leaf "beta" (biases)    gain * 0.1 * n
    two or more dimensions                    gain / sqrt(fan_in) * n,
                                              fan_in = prod(shape[1:])

All arithmetic is in float32, in the order written in ``fill``.  Layouts are those
of PyTorch: (out, in) for linear layers, (out, in/groups, kh, kw) for convolutions.
"""

import math
import zlib

import numpy as np

VERSION = 1

LAYER_SCALE = frozenset(
    "gamma gamma_1 gamma_2 ls1 ls2 lambda_1 lambda_2 lambda1 layer_scale layer_scale_1 layer_scale_2".split()
)

TOKENS = frozenset(
    "cls_token dist_token mask_token reg_token class_token class_embedding "
    "pos_embed pos_embedding position_embeddings positional_embedding "
    "decoder_pos_embed absolute_pos_embed "
    "relative_position_bias_table rel_pos_h rel_pos_w".split()
)

# nn.Embedding modules, by the last part of the module's name.
EMBEDDINGS = frozenset(
    "wte wpe token_embedding position_embedding word_embeddings "
    "query_embed query_position_embeddings row_embed col_embed".split()
)

# Integer buffers that a model computes for itself: nothing to fill.
COMPUTED = frozenset("position_ids relative_position_index attn_mask".split())


def fill(name, shape, gain=1.0):
    """The tensor called ``name``, of shape ``shape`` (float32; see the rule above)."""
    shape = tuple(int(s) for s in shape)
    leaf = name.rsplit(".", 1)[-1]
    parent = name.rsplit(".", 2)[-2] if "." in name else ""
    if leaf in COMPUTED:
        raise ValueError(f"{name} is computed by the model and is not filled")
    if leaf == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)

    rng = np.random.default_rng(zlib.crc32(name.encode("utf-8")))
    n = np.asarray(rng.standard_normal(shape, dtype=np.float32), dtype=np.float32)
    f = np.float32

    if leaf == "running_mean":
        return f(0.1) * n
    if leaf == "running_var":
        return f(1.0) + f(0.1) * np.abs(n)
    if leaf == "alpha":
        return f(1.0) + f(0.1) * n
    if leaf in LAYER_SCALE:
        return f(0.2) + f(0.05) * n
    if leaf in TOKENS:
        return f(gain * 0.2) * n
    if leaf == "weight" and n.ndim == 2 and parent in EMBEDDINGS:
        return f(gain) * n
    if n.ndim == 0 or (n.ndim == 1 and leaf == "weight"):
        return f(1.0) + f(0.1) * n
    if n.ndim == 1 or leaf == "beta":
        return f(gain * 0.1) * n
    fan_in = math.prod(shape[1:])
    return f(gain / math.sqrt(fan_in)) * n


def state_dict(manifest, gain=None):
    """{name: array} of a manifest (a dict read from one of the .json files)."""
    if manifest["fill_version"] != VERSION:
        raise ValueError(f"fixture made with fill version {manifest['fill_version']}")
    gain = manifest["gain"] if gain is None else gain
    out = {}
    for name, shape, dtype in manifest["state_dict"]:
        out[name] = fill(name, shape, gain).astype(dtype, copy=False)
    return out


def make_input(spec):
    """One input from its entry in a manifest's "inputs" (None if stored in the .npz)."""
    if spec["kind"] == "stored":
        return None
    rng = np.random.default_rng(spec["seed"])
    shape = tuple(spec["shape"])
    if spec["kind"] == "normal":
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(spec.get("scale", 1.0))
    if spec["kind"] == "uniform":
        return rng.random(shape, dtype=np.float32)
    raise ValueError(spec["kind"])


def take(array, steps):
    """array[::steps[0], ::steps[1], ...]"""
    return array[tuple(slice(None, None, s) for s in steps)]


def checksum(state):
    """[sum, sum of absolute values] over all tensors, accumulated in float64."""
    total = magnitude = 0.0
    for name in sorted(state):
        a = np.asarray(state[name], dtype=np.float64)
        total += float(a.sum())
        magnitude += float(np.abs(a).sum())
    return [total, magnitude]


# First values of some tensors in version 1 (gain 1), to see that numpy's random
# stream on this machine is the one the fixtures were made with.
KNOWN = {
    ("conv1.weight", (64, 3, 7, 7)): [0.000829407712, -0.0329521336, 0.00598034402],
    ("bn1.weight", (64,)): [0.968829036, 1.14646173, 0.998947561],
    ("bn1.bias", (64,)): [-0.0707446337, -0.0515906326, 0.00227811607],
    ("bn1.running_mean", (64,)): [-0.103329949, 0.21032761, 0.0884199664],
    ("bn1.running_var", (64,)): [1.09425151, 1.11785245, 1.00230408],
    ("pos_embed", (1, 197, 192)): [0.0342220962, 0.176124349, 0.375513822],
    ("blocks.0.ls1", (384,)): [0.105279341, 0.132972926, 0.195961967],
    ("blocks.0.norm1.alpha", (1, 1, 384)): [1.1617614, 0.872683585, 1.08414352],
    ("logit_scale", ()): [1.01408887],
    ("query_embed.weight", (100, 256)): [-0.474983066, 1.93245399, -0.41684708],
}


def self_check():
    for (name, shape), values in KNOWN.items():
        got = fill(name, shape).ravel()[: len(values)]
        if not np.allclose(got, values, rtol=1e-6, atol=0):
            raise AssertionError(f"{name}: {got.tolist()} in place of {values}")


if __name__ == "__main__":
    self_check()
    print("fill.py version", VERSION, "ok")
