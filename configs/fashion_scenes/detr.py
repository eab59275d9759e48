"""DETR (Carion et al. 2020), small, on scenes of one to four garments.

  python -m recvis_jax.prepare --dataset=fashion_scenes
  python -m recvis_jax.train --config=configs/fashion_scenes/detr.py --workdir=runs/scenes_detr
  python -m recvis_jax.evaluate --workdir=runs/scenes_detr
  python -m recvis_jax.predict --weights=runs/scenes_detr PICTURE

Arguments: `auxiliary=False` trains the last decoder layer alone. Not measured to its end.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, auxiliary=True)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 100.0
    c.batch_size = 32
    c.eval_batch_size = 40
    c.eval_every = 10.0
    c.checkpoint_every = 10.0

    c.data = dict(name="fashion_scenes", train="train[:90%]", val="train[90%:]", test="test")
    c.data.fields = ("image", "boxes", "labels", "size", "frame")
    c.data.most_objects = 4
    c.data.augment = "flip"
    c.data.statistics = ((0.3,), (0.25,))
    backbone = dict(name="resnet18", norm="group", width=32, blocks=(2, 2, 2))
    c.model = dict(name="detr_tiny", backbone=backbone, queries=12, dropout=0.0)
    c.task = dict(name="detect", auxiliary=arg.auxiliary)
    c.optim = dict(name="adamw", lr=4e-4, weight_decay=1e-4, clip_norm=0.5, schedule="cosine", warmup=0.03)
    return config.finish(c, arg)
