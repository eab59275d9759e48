"""The Image Transformer (Parmar et al. 2018), small, on Fashion-MNIST: local attention, and four-fold super-resolution.

  python -m recvis_jax.train --config=configs/fashion_mnist/image_transformer.py --workdir=runs/image_transformer
  python -m recvis_jax.train --config=configs/fashion_mnist/image_transformer.py:attention=local_2d --workdir=runs/2d
  python -m recvis_jax.train --config=configs/fashion_mnist/image_transformer.py:upscale --workdir=runs/upscale
  python -m recvis_jax.generate --workdir=runs/upscale --split=test

attention: local_1d, local_2d, or strided and fixed of the Sparse Transformer, or full. output: categorical, a score of
each of the 16 greys; or logistics, a mixture of five logistic distributions (Salimans et al. 2017), which knows that
greys are ordered. Images have 14x14 pixels. With `upscale` they have all 28x28, and an encoder is told the 7x7 means of
4x4 pixels. Not measured yet.
"""

import ml_collections

from recvis_jax import config, errors


def pattern(kind, side):
    """The pattern of attention in images of side x side pixels."""
    patterns = dict(
        full=None,
        local_1d=dict(kind="local_1d", block=2 * side, memory=2 * side),
        local_2d=dict(kind="local_2d", h=side, w=side, block=(7, 7), memory=(3, 3)),
        strided=dict(kind="strided", stride=side),
        fixed=dict(kind="fixed", stride=side, summary=2),
    )
    errors.choose(patterns, kind, "attention")
    return patterns[kind]


def get_config(arg=None):
    arg = config.parse_arg(arg, attention="local_1d", output="categorical", upscale=False)
    errors.choose(dict.fromkeys(("categorical", "logistics")), arg.output, "output")
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 4.0 if arg.upscale else 10.0
    c.batch_size = 64
    c.eval_batch_size = 256
    c.eval_every = 2.0
    c.checkpoint_every = 1.0
    c.ema_decay = 0.999

    side = 28 if arg.upscale else 14
    c.data = dict(name="fashion_mnist", train="train[:55000]", val="train[55000:]", test="test")
    c.data.transform = c.data.eval_transform = "" if arg.upscale else "resize(14)"
    c.data.statistics = ((0.0,), (1.0,))
    c.model = dict(name="image_transformer", shape=(side, side, 1), levels=16, width=128, depth=4, heads=4, hidden=512)
    c.model.update(pre_norm=True, mixtures=5 if arg.output == "logistics" else 0)
    c.model.encoder_depth = 2 if arg.upscale else 0
    if pattern(arg.attention, side):
        c.model.sparse = pattern(arg.attention, side)
    c.task = dict(name="pixels")
    c.optim = dict(name="adamw", lr=1e-3, schedule="cosine", warmup=0.05, b2=0.95, weight_decay=0.01, decay=r"kernel$")
    return config.finish(c, arg)
