"""Linear probe by LARS of the masked autoencoder's encoder on Fashion-MNIST: He et al. 2022's protocol, sized down.

  python -m recvis_jax.train --config=configs/fashion_mnist/mae_linear_probe.py --workdir=runs/mae_probe

The backbone is frozen and in evaluation mode; a batch norm without affine parameters and a linear layer read the mean
of the patches beside the class token. The fast form, on cached features:
`python -m recvis_jax.probe --workdir=runs/mae --layers=latent --pool=first_rest`. Not yet measured.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, source="runs/mae", seed=0)
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.epochs = 3.0
    c.batch_size = 500
    c.eval_batch_size = 500
    c.init_from = "" if arg.smoke else arg.source

    c.data = dict(name="fashion_mnist", train="train[:54000]", val="train[54000:]", test="test")
    c.data.statistics = "fashion_mnist"
    c.data.augment = "random_resized_crop(28, scale=(0.6, 1.0))|flip"
    c.model = dict(name="probe", layer="tokens", pool="first_rest", norm=True)
    c.model.backbone = dict(name="vit_s16", patch_size=4, width=128, depth=6, heads=4)
    c.task = dict(name="classify", loss="softmax")
    c.optim = dict(name="lars", lr=0.5, base_batch=256, schedule="cosine", warmup=0.1, momentum=0.9, weight_decay=0.0)
    return config.finish(c, arg)
