"""VLAD on Fashion-MNIST: what descriptors differ from their words, which know places, too.

python -m recvis_jax.features --config=configs/fashion_mnist/vlad.py --split=train --out=runs/vlad
python -m recvis_jax.evaluate --workdir=runs/vlad

Settings are in `bovw.py`.
"""

from recvis_jax import config

get_config = config.like(__file__, "bovw.py", "encoding=vlad")
