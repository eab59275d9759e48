"""Transfer across tasks: a net trained on five classes of Fashion-MNIST, probed on the other five.

  python -m recvis_jax.train --config=configs/fashion_mnist/five_classes.py --workdir=runs/five
  python -m recvis_jax.probe --workdir=runs/five --classes=0,2,3,4,6 --protocols=linear,knn --baselines=random,pixels

It learns trousers, sandals, sneakers, bags and boots. It is probed on T-shirts, pullovers, dresses, coats and shirts,
the classes that are hardest to tell apart. `:seed=1` and so on for other seeds. Test accuracy on its own five classes
97.14 +- 0.16 % after 7 minutes on one CPU core with AVX2; on the other five, mean over seeds 0, 1, 2:

                             linear          k-NN
  features of the five       70.72 +- 0.78   72.67 +- 0.58
  random weights             63.95 +- 0.51   65.77 +- 1.89
  pixels                     76.04           79.38

Features that separate boots from bags do not separate coats from pullovers: they beat random ones, pixels beat both.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, seed=0)
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.epochs = 3.0
    c.batch_size = 256
    c.eval_batch_size = 500
    c.log_every = 50

    c.data = dict(name="fashion_mnist", train="train[:54000]", val="train[54000:]", test="test")
    c.data.classes = () if arg.smoke else (1, 5, 7, 8, 9)  # the few mock examples may lack some classes
    c.data.statistics = "fashion_mnist"
    c.data.augment = "pad_crop(2)|flip"
    c.model = dict(name="resnet20", width=16)
    c.task = dict(name="classify", loss="softmax", label_smoothing=0.1)
    c.optim = dict(name="nesterov", lr=0.1, momentum=0.9, schedule="cosine", warmup=0.1, weight_decay=5e-4)
    return config.finish(c, arg)
