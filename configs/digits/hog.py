"""HOG of scikit-learn's digits: needs no data, no preparation, no network.

python -m recvis_jax.features --config=configs/digits/hog.py --split=train --out=runs/digits_hog
python -m recvis_jax.evaluate --workdir=runs/digits_hog
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, seed=0)
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.batch_size = 100

    c.data = dict(name="digits", train="train[:90%]", val="train[90%:]", test="test")
    c.data.transform = c.data.eval_transform = "resize(24, method='bicubic')"
    c.model = dict(name="bag_of_words", encoder=None)
    c.model.descriptor = dict(name="hog", cell=4)
    c.learn = dict()
    return config.finish(c, arg)
