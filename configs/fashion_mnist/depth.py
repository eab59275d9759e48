"""The depth experiment of He et al. 2015 (figures 1 and 6) on Fashion-MNIST: deeper nets, plain and with shortcuts.

  python -m recvis_jax.train --config=configs/fashion_mnist/depth.py:depth=56,plain=True --workdir=runs/plain56
  python -m recvis_jax.evaluate --workdir=runs/plain56 --split=train --checkpoint=last

To take minutes instead of days: 20,000 images of 14x14; 8, 16 and 32 channels; 6 epochs.
depth is 20 or 56 (or 32, 44, 110).

1 to 4 minutes each on one CPU core (AVX2), one seed. Training and test error of the last checkpoint, in percent:
plain-20 12.71, 15.25; plain-56 44.59, 44.61; residual-20 10.41, 12.81; residual-56 12.67, 14.57.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, depth=20, plain=False)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 6.0
    c.batch_size = 128
    c.eval_batch_size = 500
    c.eval_every = 2.0

    c.data = dict(name="fashion_mnist", train="train[:20000]", val="train[58000:]", test="test")
    c.data.transform = "resize(14)"
    c.data.eval_transform = "resize(14)"
    c.data.augment = "flip"
    c.data.statistics = "fashion_mnist"
    c.model = dict(name=f"{'plain' if arg.plain else 'resnet'}{arg.depth}", width=8)
    c.task = dict(name="classify", loss="softmax")
    c.optim = dict(name="momentum", lr=0.1, schedule="step", weight_decay=1e-4, decay=".*")
    c.optim.schedule_args = dict(boundaries=(0.5, 0.8), factor=0.1)
    return config.finish(c, arg)
