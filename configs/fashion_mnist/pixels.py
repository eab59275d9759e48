"""Images of 14x14 pixels in 16 greys as sequences: Image GPT (Chen et al. 2020), small; all pixels before are seen.

  python -m recvis_jax.train --config=configs/fashion_mnist/pixels.py --workdir=runs/pixels
  python -m recvis_jax.train --config=configs/fashion_mnist/pixels.py:attention=strided --workdir=runs/pixels_strided
  python -m recvis_jax.generate --workdir=runs/pixels --complete
  python benchmarks/context_model.py --config=configs/fashion_mnist/pixels.py

attention: full, local_1d, local_2d (Parmar et al. 2018), strided or fixed (Child et al. 2019), in the same net. Not
measured yet.
"""

import ml_collections

from recvis_jax import config

PATTERNS = dict(
    full=None,
    local_1d=dict(kind="local_1d", block=14, memory=28),
    local_2d=dict(kind="local_2d", h=14, w=14, block=(7, 7), memory=(3, 3)),
    strided=dict(kind="strided", stride=14),
    fixed=dict(kind="fixed", stride=14, summary=2),
)


def get_config(arg=None):
    arg = config.parse_arg(arg, attention="full")
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 10.0
    c.batch_size = 64
    c.eval_batch_size = 256
    c.eval_every = 2.0
    c.checkpoint_every = 1.0
    c.ema_decay = 0.999

    c.data = dict(name="fashion_mnist", train="train[:55000]", val="train[55000:]", test="test")
    c.data.transform = c.data.eval_transform = "resize(14)"
    c.data.statistics = ((0.0,), (1.0,))
    c.model = dict(name="igpt_s", colours=16, pixels=196, width=128, depth=6, heads=4)
    if PATTERNS[arg.attention]:
        c.model.sparse = PATTERNS[arg.attention]
    c.task = dict(name="pixels")
    c.optim = dict(name="adamw", lr=1e-3, schedule="cosine", warmup=0.05, b2=0.95, weight_decay=0.01, decay=r"kernel$")
    return config.finish(c, arg)
