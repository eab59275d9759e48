"""The big Transformer of Vaswani et al. 2017 on WMT 2014 English to German: 28.4 BLEU as published. See base.py.

  python -m recvis_jax.plan --config=configs/wmt14_en_de/big.py --topology=v5e:4x4
  python -m recvis_jax.train --config=configs/wmt14_en_de/big.py --workdir=runs/wmt14_big

Not trained here.
"""

from recvis_jax import config

get_config = config.like(__file__, "base.py", "size=big")
