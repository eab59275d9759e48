"""DETR with a ResNet-50 (Carion et al. 2020) on COCO 2017, as published, for 16 accelerators or more.

  python -m recvis_jax.train --config=configs/coco/detr_r50.py --workdir=runs/detr_r50
  python -m recvis_jax.plan --config=configs/coco/detr_r50.py --topology=v5e:8x8

Needs `coco/2017` prepared by tfds in array_record, and ResNet-50's weights of torchvision for the backbone. Published:
42.0 AP on the validation pictures after 500 epochs (`epochs=500`), 40.6 after 300. Not yet trained here.

  optimizer      AdamW, 1e-4, decay 1e-4 of everything, gradients' norm clipped to 0.1
  backbone       1e-5; its norms are frozen, and its stem and first stage
  schedule       300 epochs, divided by 10 after two thirds
  batch          64 pictures
  pictures       shorter side 480 to 800, longer side at most 1333; half of them cut to a random window first; mirrored
  evaluation     shorter side 800, longer side at most 1333
  loss           cross-entropy (no object 0.1), 5 L1, 2 GIoU, of all decoder layers

Three differences: pictures are padded to one size, where the authors pad each batch to its largest picture; classes are
numbered from 0 to 79, where theirs are COCO's categories up to 90; and attention weights are not dropped. Arguments:
`epochs`, `backbone` (50 or 101) and `dc5`, which dilates the last stage (43.3 AP published for ResNet-50, 43.5 for
ResNet-101, 44.9 for both).
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, epochs=300.0, backbone=50, dc5=False)
    scales, longest, side = tuple(range(480, 801, 32)), 1333, 1344
    if arg.smoke:
        scales, longest, side = (48, 64), 96, 96
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = arg.epochs
    c.batch_size = 64
    c.eval_batch_size = 64
    c.eval_every = 10.0
    c.checkpoint_every = 1.0

    c.data = dict(name="coco/2017", train="train", val="validation", test=None, statistics="imagenet")
    c.data.fields = ("image", "boxes", "labels", "crowd", "area", "image_id", "size", "frame")
    c.data.most_objects = 100
    c.data.transform = f"flip|random_zoom({scales}, {longest})|pad({side})"
    c.data.eval_transform = f"resize({scales[-1]}, longest={longest})|pad({side})"
    c.data.threads = 16
    c.data.workers = 0 if arg.smoke else 8
    c.model = dict(name=f"detr_r{arg.backbone}{'_dc5' if arg.dc5 else ''}", queries=100)
    c.task = dict(name="detect")
    c.optim = dict(name="adamw", lr=1e-4, weight_decay=1e-4, decay=None, clip_norm=0.1, schedule="step")
    c.optim.schedule_args = dict(boundaries=(2 / 3,), factor=0.1)
    c.optim.lr_multipliers = ((r"^backbone/", 0.1),)
    c.optim.freeze = r"^backbone/(stem|stage1_)"
    source = f"hf://timm/resnet{arg.backbone}.tv_in1k"
    c.init_from = dict(source=source, into="backbone")
    if arg.smoke:  # the same path with few channels
        small = dict(width=8, blocks=(1, 1, 1, 1))
        c.model.update(backbone=small, width=32, heads=2, encoder_depth=1, decoder_depth=2, hidden=32)
    return config.finish(c, arg)
