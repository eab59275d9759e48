"""Centre points (Zhou et al. 2019) of trees, on tiles of aerial photographs with hand-drawn boxes.

  pip download --no-deps deepforest==2.1.0
  python -m recvis_jax.prepare --dataset=deepforest --source=deepforest-2.1.0-py3-none-any.whl
  python -m recvis_jax.train --config=configs/deepforest/centre.py --workdir=runs/trees_centre

Not trained to its end yet. A guess that never looks, the 100 boxes that trees usually have in a tile, reaches AP50
0.038 on the 42 test tiles (`python benchmarks/usual_boxes.py --seed=S`, S = 0, 1, 2: 0.044, 0.034, 0.036).
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 60.0
    c.batch_size = 8
    c.eval_batch_size = 8
    c.eval_every = 10.0
    c.checkpoint_every = 10.0

    c.data = dict(name="deepforest", train="train", val="validation", test="test", statistics="imagenet")
    c.data.fields = ("image", "boxes", "labels", "crowd", "area", "image_id", "size", "frame")
    c.data.augment = "flip"
    backbone = dict(name="resnet18", norm="group", width=32, blocks=(2, 2, 2))
    c.model = dict(name="centre_r18", backbone=backbone, norm="group", width=64)
    c.task = dict(name="centre", most=100)
    c.optim = dict(name="adamw", lr=1e-3, weight_decay=1e-4, clip_norm=1.0, schedule="cosine", warmup=0.03)
    if arg.smoke:  # the same path with few channels
        c.model.update(backbone=dict(name="resnet18", norm="group", width=8, blocks=(1, 1)), width=8)
    return config.finish(c, arg)
