"""PyTorch's side of `sequences.py`: the same nets, as one writes them there."""

import time

import sides
import torch
import torch.nn.functional as F
from torch import nn

_STATE = {}


class Transformer(nn.Module):
    """nn.Transformer with tied embeddings, norms before the branches, and sinusoidal positions."""

    def __init__(self, size: int, width: int, heads: int, encoder: int, decoder: int, hidden: int, dropout: float):
        super().__init__()
        self.embed, self.scale = nn.Embedding(size, width), width**0.5
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.net = nn.Transformer(
            width, heads, encoder, decoder, hidden, dropout, batch_first=True, norm_first=True
        )  # fmt: skip
        self.drop = nn.Dropout(dropout)
        angles = torch.arange(512)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("places", torch.stack([angles.sin(), angles.cos()], -1).reshape(512, width))

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        a, b = (self.drop(self.embed(x) * self.scale + self.places[: x.shape[1]]) for x in (source, target))
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return F.linear(self.net(a, b, tgt_mask=mask, tgt_is_causal=True), self.embed.weight)


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.RMSNorm(width, 1e-5), nn.RMSNorm(width, 1e-5), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp1, self.mlp2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, d))
        y = self.mlp1(self.norm2(x))
        return x + self.mlp2(y * torch.sigmoid(1.702 * y))


class ImageGPT(nn.Module):
    def __init__(self, size: int, tokens: int, width: int, heads: int, depth: int):
        super().__init__()
        self.embed, self.places = nn.Embedding(size + 1, width), nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.RMSNorm(width, 1e-5), nn.Linear(width, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.embed(x) + self.places.weight[: x.shape[1]])))


def prepare(form: str, batch: int, kind: str, tokens: int, size: int, width: int, heads: int, decoder: int,
            encoder: int = 0, hidden: int = 0, dropout: float = 0.0) -> None:  # fmt: skip
    torch.manual_seed(0)
    x, y = torch.randint(3, size, (2, batch, tokens))
    if kind == "transformer":
        net, start, smoothing = Transformer(size, width, heads, encoder, decoder, hidden, dropout), 1, 0.1
    else:
        net, start, smoothing = ImageGPT(size, tokens, width, heads, decoder), size, 0.0
    before = torch.cat([torch.full((batch, 1), start), y[:, :-1]], 1)
    given = (x, before) if kind == "transformer" else (before,)
    run = torch.compile(net) if form == "compile" else net
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def one() -> None:
        loss = F.cross_entropy(run(*given).flatten(0, 1), y.flatten(), label_smoothing=smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    one(), one(), one()
    _STATE["one"] = one


def measure(seconds: float) -> float:
    """Returns the seconds of an update."""
    began, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        _STATE["one"]()
        count += 1
    return spent / count


if __name__ == "__main__":
    sides.serve({"prepare": prepare, "measure": measure})
