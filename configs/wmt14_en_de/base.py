"""The base Transformer of Vaswani et al. 2017 on WMT 2014 English to German, as published: 27.3 BLEU (big: 28.4).

  python -m recvis_jax.plan --config=configs/wmt14_en_de/base.py --topology=v5e:2x4
  python -m recvis_jax.train --config=configs/wmt14_en_de/base.py --workdir=runs/wmt14_base
  python -m recvis_jax.evaluate --workdir=runs/wmt14_base --split=test --checkpoint=average

The data are those of tfds (wmt14_translate/de-en), prepared where TensorFlow is installed. Not trained here. Where the
paper fills a batch with about 25,000 tokens of each side, this one has 1,024 sentences, of 25 tokens in the mean;
`plan` takes all of them to be as long as the longest.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, size="base")
    big = arg.size == "big"
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = 300_000 if big else 100_000
    c.batch_size = 1024
    c.eval_batch_size = 256
    c.eval_every = 5_000
    c.checkpoint_every = 1_500  # about ten minutes on the paper's eight P100; a third of it for big
    c.keep_checkpoints = 20 if big else 5

    c.data = dict(name="wmt14_translate/de-en", train="train", val="validation", test="test")
    c.data.text = dict(kind="bpe", tokens=37_000, most=128, too_long="drop", source="en", target="de")
    c.data.buckets = dict(source=(16, 32, 48, 64, 96), target=(16, 32, 48, 64, 96))
    c.model = dict(name=f"transformer_{arg.size}", vocabulary=37_000)
    c.task = dict(name="translate", label_smoothing=0.1)
    # width^-0.5 min(t^-0.5, t warmup^-1.5)
    width, warmup = 1024 if big else 512, 4000
    c.optim = dict(name="adam", lr=(width * warmup) ** -0.5, b1=0.9, b2=0.98, eps=1e-9, schedule="rsqrt", warmup=warmup)
    c.optim.schedule_args = dict(timescale=warmup)
    return config.finish(c, arg)
