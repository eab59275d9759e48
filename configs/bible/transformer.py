"""The Transformer, small, on verses of the Bible, English (King James) to Spanish (Reina-Valera 1909).

  python -m recvis_jax.prepare --dataset=bible_es
  python -m recvis_jax.train --config=configs/bible/transformer.py --workdir=runs/bible
  python -m recvis_jax.generate --workdir=runs/bible "In the beginning was the Word."

Not measured yet. As configs/libreoffice/transformer.py, but for longer texts.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 20.0
    c.batch_size = 64
    c.eval_batch_size = 128
    c.eval_every = 4.0
    c.checkpoint_every = 1.0
    c.ema_decay = 0.999

    c.data = dict(name="bible_es", train="train", val="validation[:300]", test="test")
    c.data.text = dict(kind="bpe", tokens=6000, most=96, too_long="drop")
    c.data.buckets = dict(source=(32, 56), target=(32, 56))
    c.model = dict(name="transformer_base", width=256, heads=4, encoder_depth=3, decoder_depth=3, hidden=1024)
    c.model.update(pre_norm=True, dropout=0.2)
    c.task = dict(name="translate", label_smoothing=0.1)
    c.optim = dict(name="adam", lr=1e-3, b2=0.98, eps=1e-9, schedule="rsqrt", warmup=400)
    c.optim.schedule_args = dict(timescale=400)
    return config.finish(c, arg)
