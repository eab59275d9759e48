"""ViT-S/16 on ImageNet, for a TPU (v3-8 or larger): 90 epochs in bfloat16.

  python -m recvis_jax.train --config=configs/imagenet/vit_s16.py --workdir=runs/imagenet_vit_s16

The recipe is that of Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k", which reports 76.5 %: mean
pooling, sin-cos positions, RandAugment(2, 10), mixup 0.2, adamw with decoupled decay, gradient norm clipped to 1.
`variant=vit_b16` or another name selects another size. Not yet trained here.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, image_size=224, variant="vit_s16")
    size = 32 if arg.smoke else arg.image_size
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 90.0
    c.batch_size = 1024
    c.eval_batch_size = 1024
    c.dtype = "bfloat16"
    c.log_every = 100
    c.checkpoint_every = 1000

    c.data = dict(name="imagenet2012", train="train[:-10000]", val="train[-10000:]", test="validation")
    c.data.transform = f"random_resized_crop({size}, scale=(0.05, 1.0))|flip|randaugment(2, 10)"
    c.data.eval_transform = f"resize_crop({size}, resize={size * 256 // 224})"
    c.data.augment = "mixup(0.2)"
    c.data.statistics = "inception"
    c.data.threads = 16
    c.data.workers = 0 if arg.smoke else 8
    c.model = dict(name=arg.variant, pool="gap", positions="sincos2d")
    c.task = dict(name="classify", loss="softmax")
    c.optim = dict(name="adamw", lr=1e-3, schedule="cosine", warmup=10_000, weight_decay=1e-4, clip_norm=1.0)
    if arg.smoke:
        c.optim.warmup = 1
    return config.finish(c, arg)
