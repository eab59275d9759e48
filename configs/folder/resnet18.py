"""ResNet-18 on your own images, with one folder per class.

  python -m recvis_jax.prepare --dataset=folder --source=my/pictures --name=pictures
  python -m recvis_jax.train --config=configs/folder/resnet18.py:name=pictures --workdir=runs/pictures

From published weights: --config.init_from=FILE --config.init_from.new_head=True --config.optim.lr=0.01 (see README).
The last tenth of the training images is for validation. If the folder has its own validation and test images, in val/
and test/, `prepare` makes the splits "validation" and "test", and prints the command that uses them:
`--config.data.train=train --config.data.val=validation --config.data.test=test`.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, name="cifar10", image_size=128)
    size = 32 if arg.smoke else arg.image_size
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 30.0
    c.batch_size = 64
    c.eval_batch_size = 64

    c.data = dict(name="cifar10" if arg.smoke else arg.name, train="train[:90%]", val="train[90%:]", test="")
    c.data.transform = f"random_resized_crop({size}, scale=(0.25, 1.0))"
    c.data.eval_transform = f"resize_crop({size}, resize={size * 8 // 7})"
    c.data.augment = "flip|color_jitter(0.2, 0.2, 0.2, 0.0)"
    c.data.statistics = "imagenet"
    c.model = dict(name="resnet18", zero_init=True)
    c.task = dict(name="classify", loss="softmax", label_smoothing=0.1)
    c.optim = dict(name="nesterov", lr=0.05, schedule="cosine", warmup=0.1, weight_decay=1e-4)
    return config.finish(c, arg)
