"""Fine-tuning of MAE ViT-B/16 on ImageNet (He et al. 2022), for a TPU pod: 100 epochs in bfloat16.

  python -m recvis_jax.train --config=configs/imagenet/mae_vit_b16_finetune.py --workdir=runs/finetune_b16 \\
      --config.init_from.source=runs/mae_vit_b16  # or a file that the authors published

Line by line against the paper's appendix A.1, table 9 ("End-to-end fine-tuning setting"). Where the authors' released
settings for patch-normalised targets differ, those are used and marked *:

  optimizer                AdamW                     optim.name
  base learning rate       1e-3                      optim.lr: 5e-4 for B*, times batch / 256 (optim.base_batch)
  weight decay             0.05                      optim.weight_decay, not of biases, norms, positions, class token
  optimizer momentum       b1, b2 = 0.9, 0.999       optim.b1, optim.b2
  layer-wise lr decay      0.75                      optim.layer_decay: 0.65 for B*
  batch size               1024                      batch_size
  learning rate schedule   cosine decay              optim.schedule
  warmup epochs            5                         optim.warmup_epochs
  training epochs          100 (B), 50 (L, H)        epochs
  augmentation             RandAug (9, 0.5)          data.transform, and a flip; random erasing of 1 in 4*
  label smoothing          0.1                       task.label_smoothing
  mixup                    0.8                       data.augment, with probability 1/2 each
  cutmix                   1.0                       data.augment
  drop path                0.1 (B/L), 0.2 (H)        model.drop_path: 0.2 for L*, 0.3 for H*

The head reads the mean of the patches, as in the authors' code. Arguments: `size` b, l or h, `patch`. The paper reports
83.6 % (B), 85.9 % (L), 86.9 % (H). Not yet trained here.
"""

import ml_collections

from recvis_jax import config

SIZES = dict(b=(5e-4, 0.65, 100.0, 0.1), l=(1e-3, 0.75, 50.0, 0.2), h=(1e-3, 0.75, 50.0, 0.3))


def get_config(arg=None):
    arg = config.parse_arg(arg, size="b", patch=16, image_size=224)
    lr, layer_decay, epochs, drop_path = SIZES[arg.size]
    size = 2 * arg.patch if arg.smoke else arg.image_size
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = epochs
    c.batch_size = 1024
    c.eval_batch_size = 1024
    c.dtype = "bfloat16"
    if not arg.smoke:
        c.init_from = dict(source=f"runs/mae_vit_{arg.size}{arg.patch}", new_head=True)

    c.data = dict(name="imagenet2012", train="train[:-10000]", val="train[-10000:]", test="validation")
    c.data.transform = f"random_resized_crop({size}, method='bicubic')|flip|randaugment(2, 9, mstd=0.5)"
    c.data.eval_transform = f"resize_crop({size}, resize={size * 256 // 224}, method='bicubic')"
    c.data.augment = "erase(0.25, value='random')|mixup_cutmix(0.8, 1.0)"
    c.data.statistics = "imagenet"
    c.data.threads = 16
    c.data.workers = 0 if arg.smoke else 8
    c.model = dict(name=f"vit_{arg.size}{arg.patch}", pool="gap_norm", drop_path=drop_path, scan=not arg.smoke)
    if arg.smoke:
        c.model.update(width=64, depth=2, heads=4)
    c.task = dict(name="classify", loss="softmax", label_smoothing=0.1)
    c.optim = dict(name="adamw", lr=lr, base_batch=256, schedule="cosine", warmup_epochs=5.0)
    c.optim.update(b1=0.9, b2=0.999, weight_decay=0.05, decay="kernel$", layer_decay=layer_decay)
    return config.finish(c, arg)
