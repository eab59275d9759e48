"""VLAD of scikit-learn's digits: needs no data, no preparation, no network.

  python -m recvis_jax.features --config=configs/digits/vlad.py --split=train --out=runs/digits_vlad
  python -m recvis_jax.evaluate --workdir=runs/digits_vlad

Digits of 8x8 pixels are enlarged to 24x24, in which a descriptor of 4x4 bins of 3 pixels has room.
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
    c.model = dict(name="bag_of_words", words=32, xy=2.0)
    c.model.encoder = dict(name="vlad")
    c.model.descriptor = dict(name="phow", sizes=(3, 4), step=2, root=True)
    c.learn = dict(images=0, per_image=100)
    return config.finish(c, arg)
