"""The networks of the benchmarks that neither torchvision nor timm has, in PyTorch, as one writes them there."""

import torch
import torch.nn.functional as F
from timm.models.convmixer import ConvMixer
from timm.models.vision_transformer import Block
from torch import nn


class LeNet5(nn.Sequential):
    def __init__(self, num_classes: int = 10):
        super().__init__(
            nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, num_classes),
        )  # fmt: skip


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A)."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride, self.new = stride, width - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.new:
            half = self.new // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new - half))
        return F.relu(x + y)


class ResNet20(nn.Module):
    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        shapes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        self.blocks = nn.Sequential(*[BasicBlock(*shape) for shape in shapes])
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


def convmixer(num_classes: int = 1000) -> nn.Module:
    return ConvMixer(256, 8, kernel_size=9, patch_size=7, num_classes=num_classes)


class SpeedNet(nn.Module):
    """The network of `configs/fashion_mnist/speedrun.py`."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 128, 256), blocks: tuple[int, ...] = (0, 1, 0)):
        super().__init__()
        self.stem = self.piece(1, widths[0], 5, 2)
        self.grow, self.norms, self.blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for before, width, count in zip(widths, widths[1:], blocks, strict=False):
            self.grow.append(self.conv(before, width))
            self.norms.append(nn.BatchNorm2d(width))
            self.blocks.append(nn.ModuleList([self.piece(width, width) for _ in range(count)]))
        self.head = nn.Linear(widths[-1], 10, bias=False)
        nn.init.normal_(self.head.weight, std=widths[-1] ** -0.5)

    @staticmethod
    def conv(inputs: int, width: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
        conv = nn.Conv2d(inputs, width, size, stride, size // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        return conv

    @classmethod
    def piece(cls, *shape: int) -> nn.Sequential:
        return nn.Sequential(cls.conv(*shape), nn.BatchNorm2d(shape[1]), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for grow, norm, blocks in zip(self.grow, self.norms, self.blocks, strict=True):
            x = F.relu(norm(F.max_pool2d(grow(x), 2)))
            for block in blocks:
                x = x + block(x)
        return 0.125 * self.head(x.amax((2, 3)))


class MAE(nn.Module):
    """Masked autoencoder on 224x224 images, 75 % masked; the forward pass returns the loss."""

    def __init__(
        self, width: int = 384, depth: int = 12, heads: int = 6, to: int = 512, layers: int = 8, hands: int = 16
    ):
        super().__init__()
        self.n, self.keep = 196, 49
        self.embed = nn.Conv2d(3, width, 16, 16)
        self.cls, self.token = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 1, to))
        self.register_buffer("positions", torch.zeros(1, 197, width))
        self.register_buffer("decoder_positions", torch.zeros(1, 197, to))
        kw = dict(mlp_ratio=4.0, qkv_bias=True)
        self.blocks = nn.Sequential(*[Block(width, heads, **kw) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.narrow = nn.Linear(width, to)
        self.decoder = nn.Sequential(*[Block(to, hands, **kw) for _ in range(layers)])
        self.decoder_norm = nn.LayerNorm(to, eps=1e-6)
        self.head = nn.Linear(to, 768)

    def forward(self, images: torch.Tensor, train: bool = True) -> torch.Tensor:
        b = len(images)
        x = self.embed(images).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        keep = self.keep if train else self.n
        order = torch.rand(b, self.n).argsort(1)
        restore = order.argsort(1)
        x = torch.gather(x, 1, order[:, :keep, None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([(self.cls + self.positions[:, :1]).expand(b, -1, -1), x], 1)
        x = self.narrow(self.norm(self.blocks(x)))
        y = torch.cat([x[:, 1:], self.token.expand(b, self.n - keep, -1)], 1)
        y = torch.gather(y, 1, restore[..., None].expand(-1, -1, y.shape[-1]))
        y = torch.cat([x[:, :1], y], 1) + self.decoder_positions
        y = self.head(self.decoder_norm(self.decoder(y)))[:, 1:]
        if not train:
            return y
        target = images.reshape(b, 3, 14, 16, 14, 16).permute(0, 2, 4, 3, 5, 1).reshape(b, 196, 768)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        mask = (restore >= keep).float()
        return (((y - target) ** 2).mean(-1) * mask).sum() / mask.sum()
