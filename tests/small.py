"""A run of a second with every kind of state, for tests: `--config=tests/small.py`, or `small.sections()`."""

import copy

import ml_collections

GONE = object()

SECTIONS = dict(
    seed=5, steps=60, batch_size=32, eval_batch_size=64, ema_decay=0.9, log_every=5, eval_every=20, checkpoint_every=10,
    data=dict(
        name="digits", train="train[:90%]", val="train[90%:]", test="test", statistics="digits", cache="host",
        transform="random_resized_crop(8, scale=(0.5, 1.0))", augment="flip|cutout(3)|mixup(0.2)",
    ),
    model=dict(name="mlp", hidden=(64, 32), norm="batch", dropout=0.3),
    optim=dict(
        name="momentum", lr=0.05, schedule="cosine", warmup=0.1, weight_decay=1e-4, schedule_args=dict(),
        optimizer_args=dict(),
    ),
    task=dict(name="classify"),
)  # fmt: skip


def sections(**changes):
    """The keyword arguments of `train`, with changes by path, as `sections(seed=1, optim__lr=GONE)`."""
    out = copy.deepcopy(SECTIONS)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = out
        for key in parents:
            node = node[key]
        if value is GONE:
            node.pop(last, None)
        else:
            node[last] = value
    return out


def get_config():
    return ml_collections.ConfigDict(sections())
