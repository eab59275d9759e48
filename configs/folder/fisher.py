"""Fisher vectors on a folder of photographs of one's own, one folder a class: no gradients, no weights of others.

  python -m recvis_jax.prepare --dataset=folder --source=my/pictures --name=pictures
  python -m recvis_jax.features --config=configs/folder/fisher.py:name=pictures --split=train --out=runs/pictures
  python -m recvis_jax.predict --weights=runs/pictures my/other/pictures

The last tenth of the training images is for validation. Photographs become squares of `image_size` pixels.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, name="cifar10", image_size=224, words=64, seed=0)
    size = 32 if arg.smoke else arg.image_size
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.batch_size = 8

    c.data = dict(name="cifar10" if arg.smoke else arg.name, train="train[:90%]", val="train[90%:]", test="")
    c.data.transform = c.data.eval_transform = f"resize(({size}, {size}))"
    c.model = dict(name="bag_of_words", words=arg.words, components=80, pyramid="1x1+3x1")
    sizes = (2, 3) if arg.smoke else (4, 6, 8, 10)
    c.model.descriptor = dict(name="phow", sizes=sizes, step=4, root=True)
    c.model.encoder = dict(name="fisher")
    c.learn = dict(images=2000, per_image=250, passes=25, mirrored=True)
    return config.finish(c, arg)
