"""The bag of visual words of scikit-learn's digits: needs no data, no preparation, no network.

  python -m recvis_jax.features --config=configs/digits/bovw.py --split=train --out=runs/digits_bovw
  python -m recvis_jax.evaluate --workdir=runs/digits_bovw

Digits of 8x8 pixels are enlarged to 24x24, in which a descriptor of 4x4 bins of 3 pixels has room.
"""

import ml_collections

from recvis_jax import config

_SIFT = dict(name="phow", sizes=(3, 4), step=2, root=True)
_LEARN = dict(images=0, per_image=100)
# encoding -> arguments of the model, and of learning
ENCODINGS = dict(
    bovw=(dict(descriptor=_SIFT, words=128, xy=2.0, encoder=dict(name="hard", root=True, norm="l2")), _LEARN),
    vlad=(dict(descriptor=_SIFT, words=32, xy=2.0, encoder=dict(name="vlad")), _LEARN),
    fisher=(dict(descriptor=_SIFT, words=16, components=48, xy=2.0, encoder=dict(name="fisher")), _LEARN),
    hog=(dict(descriptor=dict(name="hog", cell=4), encoder=None), {}),
)


def get_config(arg=None):
    arg = config.parse_arg(arg, encoding="bovw", seed=0)
    model, learn = ENCODINGS[arg.encoding]
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.batch_size = 100

    c.data = dict(name="digits", train="train[:90%]", val="train[90%:]", test="test")
    c.data.transform = c.data.eval_transform = "resize(24, method='bicubic')"
    c.model = dict(name="bag_of_words", **model)
    c.learn = learn
    return config.finish(c, arg)
