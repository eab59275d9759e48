"""The Transformer (Vaswani et al. 2017), small, on texts of LibreOffice's user interface, English to German.

  python -m recvis_jax.prepare --dataset=libreoffice_de
  python -m recvis_jax.train --config=configs/libreoffice/transformer.py --workdir=runs/translate
  python -m recvis_jax.evaluate --workdir=runs/translate --split=test
  python -m recvis_jax.generate --workdir=runs/translate "File not found"
  python benchmarks/translation.py --workdir=runs/translate

name=my_texts takes other prepared texts. The net is not measured yet; 4.2 million parameters, 7,800 updates.

On the test catalogues (cui, fps, sfx: 2,631 texts, none of them in training), copying the source has 3.83 BLEU, a
translation memory (the translation of the most similar of the 12,581 training texts) 2.42, and chrF 18.4. The test is
harder than the training texts: 10.6 words on average instead of 7.0, 10.3 % of its German words never occur in
training (84,046 words, 9,808 different ones), and only 8.5 % of its German runs of four words do.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, name="libreoffice_de")
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = 40.0
    c.batch_size = 64
    c.eval_batch_size = 256
    c.eval_every = 4.0
    c.checkpoint_every = 1.0
    c.keep_checkpoints = 5
    c.ema_decay = 0.999

    c.data = dict(name=arg.name, train="train", val="validation[:500]", test="test")
    c.data.text = dict(kind="bpe", tokens=4000, most=64, too_long="drop")
    c.data.buckets = dict(source=(12, 28), target=(12, 28))
    c.model = dict(name="transformer_base", width=256, heads=4, encoder_depth=3, decoder_depth=2, hidden=512)
    c.model.update(pre_norm=True, dropout=0.2)
    c.task = dict(name="translate", label_smoothing=0.1)
    # lr sqrt(warmup / t) after the warm-up, as in the paper.
    c.optim = dict(name="adam", lr=1e-3, b2=0.98, eps=1e-9, schedule="rsqrt", warmup=800)
    c.optim.schedule_args = dict(timescale=800)
    return config.finish(c, arg)
