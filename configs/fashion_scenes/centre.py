"""A dense centre-point detector (Zhou et al. 2019) on scenes of one to four garments, on the backbone of `detr.py`.

  python -m recvis_jax.prepare --dataset=fashion_scenes
  python -m recvis_jax.train --config=configs/fashion_scenes/centre.py --workdir=runs/scenes_centre

Not measured to its end.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 30.0
    c.batch_size = 32
    c.eval_batch_size = 40
    c.eval_every = 5.0
    c.checkpoint_every = 5.0

    c.data = dict(name="fashion_scenes", train="train[:90%]", val="train[90%:]", test="test")
    c.data.fields = ("image", "boxes", "labels", "size", "frame")
    c.data.most_objects = 4
    c.data.augment = "flip"
    c.data.statistics = ((0.3,), (0.25,))
    backbone = dict(name="resnet18", norm="group", width=32, blocks=(2, 2, 2))
    c.model = dict(name="centre_r18", backbone=backbone, norm="group", width=64)
    c.task = dict(name="centre", most=20)
    c.optim = dict(name="adamw", lr=1e-3, weight_decay=1e-4, clip_norm=1.0, schedule="cosine", warmup=0.03)
    return config.finish(c, arg)
