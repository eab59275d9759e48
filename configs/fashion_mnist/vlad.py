"""VLAD on Fashion-MNIST: what descriptors differ from their words, which know places, too.

python -m recvis_jax.features --config=configs/fashion_mnist/vlad.py --split=train --out=runs/vlad
python -m recvis_jax.evaluate --workdir=runs/vlad
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
    c.model = dict(name="bag_of_words", words=64, components=64, xy=1.0)
    c.model.descriptor = dict(name="phow", sizes=(2, 3, 4), step=2, root=True)
    c.model.encoder = dict(name="vlad")
    c.learn = dict()
    return config.finish(c, arg)
