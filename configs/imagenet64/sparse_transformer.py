"""The Sparse Transformer (Child et al. 2019) on ImageNet of 64x64 pixels, every byte a token, for a TPU pod.

  python -m recvis_jax.plan --config=configs/imagenet64/sparse_transformer.py --topology=v5e:8x8
  python -m recvis_jax.train --config=configs/imagenet64/sparse_transformer.py --workdir=runs/sparse_imagenet64

Against the paper's sections 5 to 7; what it does not say is ours:

  layers, width, heads     48, 512, 16               model, 152 million parameters
  attention                strided, stride 128       model.sparse; every other head one of the two patterns
  positions                row, column and channel   learned, summed
  dropout                  0.01                      model.dropout
  weight decay             0.01                      optim.weight_decay
  gradient clipping        1                         optim.clip_norm
  schedule                 cosine                    after a linear warm-up of 5,000 updates
  length                   70 epochs                 epochs
  batch size               not given                 64
  learning rate            not given                 3.5e-4, as for their CIFAR-10 net
  recomputation            attention                 model.remat, of whole layers

The paper reaches 3.44 bits a byte, on the downsampled images of van den Oord et al. 2016. Not trained here.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 70.0
    c.batch_size = 64
    c.eval_batch_size = 64
    c.dtype = "bfloat16"
    c.log_every = 100
    c.eval_every = 1.0
    c.checkpoint_every = 0.1

    c.data = dict(name="imagenet2012", train="train[:-10000]", val="train[-10000:]", test="validation")
    size = 8 if arg.smoke else 64
    c.data.transform = c.data.eval_transform = f"resize_crop({size}, resize={size})"
    c.data.statistics = ((0.0,), (1.0,))
    c.data.workers = 0 if arg.smoke else 8
    c.model = dict(name="sparse_transformer_b", shape=(size, size, 3), dropout=0.01, remat=True)
    c.model.sparse = dict(kind="strided", stride=12 if arg.smoke else 128)
    if arg.smoke:
        c.model.update(width=16, depth=1, heads=2, hidden=32)
    c.task = dict(name="pixels")
    c.optim = dict(name="adamw", lr=3.5e-4, weight_decay=0.01, decay=r"kernel$", clip_norm=1.0, schedule="cosine")
    c.optim.warmup = 5_000
    return config.finish(c, arg)
