"""Fisher vectors and a linear classifier on Fashion-MNIST: recognition as of 2010, without gradients.

python -m recvis_jax.features --config=configs/fashion_mnist/fisher.py --split=train --out=runs/fisher
python -m recvis_jax.evaluate --workdir=runs/fisher
python -m recvis_jax.probe --workdir=runs/fisher --protocols=svm --per_class=60,600,0
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
    c.model.encoder = dict(name="fisher")
    c.learn = dict(images=3000, per_image=100, passes=25, mirrored=True)
    return config.finish(c, arg)
