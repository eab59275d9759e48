"""HOG and a linear classifier on Fashion-MNIST: no vocabulary, the cells side by side.

python -m recvis_jax.features --config=configs/fashion_mnist/hog.py --split=train --out=runs/hog
python -m recvis_jax.evaluate --workdir=runs/hog
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
    c.model = dict(name="bag_of_words", encoder=None)
    c.model.descriptor = dict(name="hog", cell=4)
    c.learn = dict()
    return config.finish(c, arg)
