"""ResNet-50 on ImageNet, for a TPU (v3-8 or larger): 90 epochs in bfloat16, large batch, linear scaling.

  python -m recvis_jax.train --config=configs/imagenet/resnet50.py --workdir=runs/imagenet_resnet50

Needs `imagenet2012` prepared by tfds in array_record. ImageNet's validation split is the test split here, so the last
10,000 training images choose the best checkpoint. For your own images: prepare the folder with
`python -m recvis_jax.prepare --dataset=folder --source=my/pictures`, then use `--config.data.name=pictures` and its own
splits, such as `--config.data.train='train[:90%]' --config.data.val='train[90%:]' --config.data.test=None`.

The recipe is that of Goyal et al. 2017, which reports 76.3 % (one crop), plus label smoothing. Not yet trained here.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, image_size=224)
    size = 64 if arg.smoke else arg.image_size
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 90.0
    c.batch_size = 1024
    c.eval_batch_size = 1024
    c.dtype = "bfloat16"
    c.log_every = 100
    c.checkpoint_every = 1000

    c.data = dict(name="imagenet2012", train="train[:-10000]", val="train[-10000:]", test="validation")
    c.data.transform = f"random_resized_crop({size})"  # on the host, before images have one size
    c.data.eval_transform = f"resize_crop({size}, resize={size * 256 // 224})"
    c.data.augment = "flip"
    c.data.statistics = "imagenet"
    c.data.threads = 16
    c.data.workers = 0 if arg.smoke else 8
    c.model = dict(name="resnet50", zero_init=True)
    c.task = dict(name="classify", loss="softmax", label_smoothing=0.1)
    c.optim = dict(name="nesterov", lr=0.1, base_batch=256, schedule="cosine", warmup_epochs=5.0, weight_decay=1e-4)
    return config.finish(c, arg)
