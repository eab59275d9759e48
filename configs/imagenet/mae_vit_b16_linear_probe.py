"""Linear probe of MAE ViT-B/16 on ImageNet (He et al. 2022), for a TPU pod: 90 epochs on frozen features.

  python -m recvis_jax.train --config=configs/imagenet/mae_vit_b16_linear_probe.py --workdir=runs/probe_b16 \\
      --config.init_from=runs/mae_vit_b16         # or a file that the authors published

Line by line against the paper's appendix A.1, table 10 ("Linear probing setting"):

  optimizer                LARS                      optim.name
  base learning rate       0.1                       optim.lr, times batch / 256 (optim.base_batch)
  weight decay             0                         optim.weight_decay
  optimizer momentum       0.9                       optim.momentum
  batch size               16384                     batch_size
  learning rate schedule   cosine decay              optim.schedule
  warmup epochs            10                        optim.warmup_epochs
  training epochs          90                        epochs; the authors note that 50 are enough for L and H
  augmentation             RandomResizedCrop         data.transform; the authors' code also flips

and section A.1: a batch norm without affine parameters before the linear layer, which reads the class token. The
paper reports 68.0 % (B), 75.8 % (L), 76.6 % (H). Not yet trained here. The fast form on cached features:
`python -m recvis_jax.probe --config=... --out=...`.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, size="b", patch=16, epochs=90.0, image_size=224)
    size = 2 * arg.patch if arg.smoke else arg.image_size
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = arg.epochs
    c.batch_size = 16384
    c.eval_batch_size = 4096
    c.dtype = "bfloat16"
    c.init_from = "" if arg.smoke else f"runs/mae_vit_{arg.size}{arg.patch}"

    c.data = dict(name="imagenet2012", train="train[:-10000]", val="train[-10000:]", test="validation")
    c.data.transform = f"random_resized_crop({size}, method='bicubic')|flip"
    c.data.eval_transform = f"resize_crop({size}, resize={size * 256 // 224}, method='bicubic')"
    c.data.statistics = "imagenet"
    c.data.threads = 16
    c.data.workers = 0 if arg.smoke else 8
    c.model = dict(name="probe", layer="features", norm=True)
    c.model.backbone = dict(name=f"vit_{arg.size}{arg.patch}", scan=not arg.smoke)
    if arg.smoke:
        c.model.backbone.update(width=64, depth=2, heads=4)
    c.task = dict(name="classify", loss="softmax")
    c.optim = dict(name="lars", lr=0.1, base_batch=256, schedule="cosine", warmup_epochs=10.0)
    c.optim.update(momentum=0.9, weight_decay=0.0)
    return config.finish(c, arg)
