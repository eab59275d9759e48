"""Masked autoencoder (He et al. 2022) on Fashion-MNIST: 4x4 patches, 6 blocks of width 128, a decoder of 2 of width 64.

  python -m recvis_jax.train --config=configs/fashion_mnist/mae_pretrain.py --workdir=runs/mae
  python -m recvis_jax.probe --workdir=runs/mae --layers=latent --pool=first_rest --baselines=random,pixels

A figure of masked images, reconstructions and originals is drawn with every evaluation. Not yet measured in full.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 24.0
    c.batch_size = 256
    c.eval_batch_size = 500
    c.log_every = 50
    c.eval_every = 2.0

    c.data = dict(name="fashion_mnist", train="train[:54000]", val="train[54000:]", test="test")
    c.data.statistics = "fashion_mnist"
    c.data.augment = "random_resized_crop(28, scale=(0.4, 1.0))|flip"
    c.model = dict(name="mae_b16", patch_size=4, width=128, depth=6, heads=4, mask_ratio=0.75)
    c.model.update(decoder_width=64, decoder_depth=2, decoder_heads=4)
    c.task = dict(name="mae", norm_targets=True, sampling="random")
    c.optim = dict(name="adamw", lr=2e-3, base_batch=256, schedule="cosine", warmup_epochs=2.0)
    c.optim.update(b1=0.9, b2=0.95, weight_decay=0.05, decay=r"kernel$")
    return config.finish(c, arg)
