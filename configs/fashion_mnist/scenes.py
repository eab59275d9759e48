"""Which garments are in a scene of fashion_scenes: a small convolutional network on whole scenes, without their boxes.

python -m recvis_jax.prepare --dataset=fashion_scenes
python -m recvis_jax.train --config=configs/fashion_mnist/scenes.py --workdir=runs/scenes
python benchmarks/pointing.py --workdir=runs/scenes
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 30.0
    c.batch_size = 64
    c.eval_batch_size = 250
    c.eval_every = 5.0

    c.data = dict(name="fashion_scenes", train="train[:3500]", val="train[3500:]", test="test")
    c.data.statistics = "fashion_mnist"
    c.data.augment = "pad_crop(8)|flip"
    c.model = dict(name="speednet", widths=(32, 32, 64, 128), blocks=(1, 1, 0))
    c.task = dict(name="classify", loss="sigmoid")
    c.optim = dict(name="muon", lr=0.01, schedule="cosine", warmup=0.05, weight_decay=1e-2)
    return config.finish(c, arg)
