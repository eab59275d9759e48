"""Image GPT (Chen et al. 2020), small, on the digits that scikit-learn embeds: 8x8 pixels of 17 greys.

  python -m recvis_jax.train --config=configs/digits/pixels.py --workdir=runs/digits_pixels
  python -m recvis_jax.generate --workdir=runs/digits_pixels --complete
  python benchmarks/context_model.py --config=configs/digits/pixels.py

Not measured to its end: 2.275 bits a validation pixel after 5 of 20 epochs. Counts of two neighbours have 2.361 on the
test images.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 20.0
    c.batch_size = 64
    c.eval_batch_size = 360
    c.eval_every = 5.0
    c.checkpoint_every = 5.0
    c.ema_decay = 0.99

    c.data = dict(name="digits", train="train[:90%]", val="train[90%:]", test="test")
    c.data.statistics = ((0.0,), (1.0,))
    c.model = dict(name="igpt_s", colours=17, pixels=64, width=64, depth=4, heads=4, dropout=0.1)
    c.task = dict(name="pixels")
    c.optim = dict(name="adamw", lr=2e-3, schedule="cosine", warmup=0.05, b2=0.95, weight_decay=0.05, decay=r"kernel$")
    return config.finish(c, arg)
