"""ResNet-20 (He et al. 2015, section 4.2) on Fashion-MNIST.

  python -m recvis_jax.train --config=configs/fashion_mnist/resnet20.py --workdir=runs/resnet20

One seed, 69 minutes on about one CPU core (AVX2; the two cores of the machine were shared).
Test accuracy 93.57 % (last), 93.58 % (best by validation, 94.95 % there).
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 12.0
    c.batch_size = 128
    c.eval_batch_size = 500
    c.ema_decay = 0.998

    c.data = dict(name="fashion_mnist", train="train[:58000]", val="train[58000:]", test="test")
    c.data.statistics = "fashion_mnist"
    c.data.augment = "pad_crop(2)|flip"
    c.model = dict(name="resnet20")
    c.task = dict(name="classify", loss="softmax")
    c.optim = dict(name="nesterov", lr=0.2, schedule="one_cycle", weight_decay=5e-4)
    c.optim.schedule_args = dict(peak=0.25, start=0.1, final=0.0, shape="linear")
    return config.finish(c, arg)
