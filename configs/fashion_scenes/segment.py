"""Semantic segmentation of scenes of one to four garments: DeepLabV3's head on a small residual network.

  python -m recvis_jax.prepare --dataset=fashion_scenes
  python -m recvis_jax.train --config=configs/fashion_scenes/segment.py --workdir=runs/scenes_segment

Arguments: `head` (deeplabv3, fcn, or fcn8 and unet, whose network is not dilated). Not measured to its end.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, head="deeplabv3")
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 30.0
    c.batch_size = 32
    c.eval_batch_size = 40
    c.eval_every = 5.0
    c.checkpoint_every = 5.0

    c.data = dict(name="fashion_scenes", train="train[:90%]", val="train[90%:]", test="test")
    c.data.fields = ("image", "boxes", "labels", "masks")
    c.data.most_objects = 4
    c.data.augment = "flip"
    c.data.statistics = ((0.3,), (0.25,))
    backbone = dict(name="resnet50", norm="group", width=16, blocks=(1, 1, 2, 1))
    if arg.head in ("deeplabv3", "fcn"):
        backbone.update(output_stride=8)
    c.model = dict(name="deeplabv3_r50", head=arg.head, backbone=backbone, num_classes=11)
    c.model.update(norm="group", width=64, rates=(2, 4, 6), dropout=0.0)
    c.task = dict(name="segment")
    c.optim = dict(name="adamw", lr=1e-3, weight_decay=1e-4, clip_norm=1.0, schedule="cosine", warmup=0.03)
    return config.finish(c, arg)
