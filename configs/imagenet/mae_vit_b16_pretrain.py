"""MAE ViT-B/16 on ImageNet (He et al. 2022), for a TPU pod (v3-128 or larger): 800 epochs in bfloat16.

  python -m recvis_jax.train --config=configs/imagenet/mae_vit_b16_pretrain.py --workdir=runs/mae_vit_b16

Line by line against the paper's appendix A.1, table 8 ("Pre-training setting"):

  optimizer                AdamW                     optim.name
  base learning rate       1.5e-4                    optim.lr, times batch / 256 (optim.base_batch)
  weight decay             0.05                      optim.weight_decay; not of biases and norms, as in their code
  optimizer momentum       b1, b2 = 0.9, 0.95        optim.b1, optim.b2
  batch size               4096                      batch_size
  learning rate schedule   cosine decay              optim.schedule
  warmup epochs            40                        optim.warmup_epochs
  augmentation             RandomResizedCrop         data.transform; the authors' code also flips, and crops 0.2 to 1

The decoder is the paper's default of section 4.1, 8 blocks of width 512; mask ratio 75 %, patch-normalised targets.
Arguments: `size` b, l or h, `patch`, `epochs` (800; 1600 for the best results of table 3). Not yet trained here.
"""

import ml_collections

from recvis_jax import config, errors

MODELS = dict(b="mae_b16", l="mae_l16", h="mae_h14")


def get_config(arg=None):
    arg = config.parse_arg(arg, size="b", patch=16, epochs=800.0, image_size=224)
    size = 2 * arg.patch if arg.smoke else arg.image_size
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.epochs = arg.epochs
    c.batch_size = 4096
    c.eval_batch_size = 4096
    c.dtype = "bfloat16"
    c.log_every = 100
    c.eval_every = 10.0
    c.checkpoint_every = 1.0

    c.data = dict(name="imagenet2012", train="train[:-10000]", val="train[-10000:]", test="validation")
    c.data.transform = f"random_resized_crop({size}, scale=(0.2, 1.0), method='bicubic')|flip"
    c.data.eval_transform = f"resize_crop({size}, resize={size * 256 // 224}, method='bicubic')"
    c.data.statistics = "imagenet"
    c.data.threads = 16
    c.data.workers = 0 if arg.smoke else 8
    c.model = dict(name=errors.choose(MODELS, arg.size, "size"), patch_size=arg.patch, mask_ratio=0.75)
    c.model.update(decoder_width=512, decoder_depth=8, decoder_heads=16, scan=not arg.smoke, remat=arg.size != "b")
    if arg.smoke:
        c.model.update(width=64, depth=2, heads=4, decoder_width=32, decoder_depth=1, decoder_heads=4)
    c.task = dict(name="mae", norm_targets=True, sampling="random")
    c.optim = dict(name="adamw", lr=1.5e-4, base_batch=256, schedule="cosine", warmup_epochs=40.0)
    c.optim.update(b1=0.9, b2=0.95, weight_decay=0.05, decay=r"kernel$|cls_token$|mask_token$")
    return config.finish(c, arg)
