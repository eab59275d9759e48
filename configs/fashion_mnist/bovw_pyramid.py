"""Bags of visual words of eight regions on Fashion-MNIST, side by side: a spatial pyramid.

python -m recvis_jax.features --config=configs/fashion_mnist/bovw_pyramid.py --split=train --out=runs/bovw_pyramid
python -m recvis_jax.evaluate --workdir=runs/bovw_pyramid
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, seed=0, per_class=0)
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.batch_size = 200

    c.data = dict(name="fashion_mnist", train="train[:57000]", val="train[57000:]", test="test")
    c.data.per_class = arg.per_class
    c.data.subset_seed = arg.seed
    c.model = dict(name="bag_of_words", words=256, pyramid="1x1+2x2+3x1")
    c.model.descriptor = dict(name="phow", sizes=(2, 3, 4), step=2, root=True)
    c.model.encoder = dict(name="hard", root=True, norm="l2")
    c.learn = dict()
    return config.finish(c, arg)
