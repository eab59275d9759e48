"""Fisher vectors and a linear classifier on Fashion-MNIST: recognition as of 2010, without gradients.

python -m recvis_jax.features --config=configs/fashion_mnist/fisher.py --split=train --out=runs/fisher
python -m recvis_jax.evaluate --workdir=runs/fisher
python -m recvis_jax.probe --workdir=runs/fisher --protocols=svm --per_class=60,600,0

Settings are in `bovw.py`.
"""

from recvis_jax import config

get_config = config.like(__file__, "bovw.py", "encoding=fisher")
