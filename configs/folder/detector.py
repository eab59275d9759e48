"""A detector on your own pictures with boxes: centre points or DETR on a ResNet.

  python -m recvis_jax.prepare --dataset=coco --source=my/pictures --name=pictures    # or voc, yolo
  python -m recvis_jax.train --config=configs/folder/detector.py:name=pictures --workdir=runs/pictures
  python -m recvis_jax.evaluate --workdir=runs/pictures
  python -m recvis_jax.predict --weights=runs/pictures PICTURE

From published weights of the backbone: --config.init_from.source=resnet18.safetensors --config.init_from.into=backbone
(with few pictures this decides); of a whole DETR: `detector=detr_r50`, --config.init_from.source=FILE
--config.init_from.new_head=True. The last tenth of the training pictures is for validation; a data set with splits of
its own has its flags printed by `prepare`. Arguments: `name`, `detector` (centre_r18, centre_r50, detr_r50, ...),
`image_size` (the longer side, a multiple of 32) and `most_objects` in one picture.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, name="coco/2017", detector="centre_r18", image_size=256, most_objects=100)
    size = 64 if arg.smoke else arg.image_size
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 100.0
    c.batch_size = 16
    c.eval_batch_size = 16
    c.eval_every = 10.0
    c.checkpoint_every = 10.0

    c.data = dict(
        name="coco/2017" if arg.smoke else arg.name,
        train="train[:90%]",
        val="train[90%:]",
        test=None,
        statistics="imagenet",
    )
    c.data.fields = ("image", "boxes", "labels", "crowd", "area", "image_id", "size", "frame")
    c.data.most_objects = arg.most_objects
    c.data.transform = f"flip|random_resized_crop({size}, scale=(0.5, 1.0))"
    c.data.eval_transform = f"resize_pad({size})"
    c.model = dict(name=arg.detector)
    c.task = dict(name="detect" if arg.detector.startswith("detr") else "centre")
    c.optim = dict(name="adamw", lr=1e-3, weight_decay=1e-4, clip_norm=1.0, schedule="cosine", warmup=0.03)
    if c.task.name == "detect":
        c.optim.update(lr=1e-4, clip_norm=0.1, lr_multipliers=((r"^backbone/", 0.1),))
    if arg.smoke:  # the same path with few channels
        backbone = dict(name="resnet18", norm="group", width=8, blocks=(1, 1))
        c.model.update(backbone=backbone, width=32)
    return config.finish(c, arg)
