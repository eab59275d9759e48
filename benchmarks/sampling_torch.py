"""The side of transformers in `sampling.py`: Image GPT's `generate` with its cache."""

import time

import sides
import torch
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

_STATE = {}


def prepare(colours: int, pixels: int, number: int, width: int, depth: int, heads: int) -> None:
    config = ImageGPTConfig(
        vocab_size=colours + 1, n_positions=pixels + 1, n_embd=width, n_layer=depth, n_head=heads,
        bos_token_id=colours, eos_token_id=None, pad_token_id=colours,
    )  # fmt: skip
    torch.manual_seed(0)
    _STATE.update(model=ImageGPTForCausalImageModeling(config).eval(), number=number, pixels=pixels, colours=colours)


def draw() -> float:
    """Returns the seconds of drawing the images."""
    start = torch.full((_STATE["number"], 1), _STATE["colours"])
    began = time.perf_counter()
    with torch.inference_mode():
        found = _STATE["model"].generate(
            start, max_length=_STATE["pixels"] + 1, min_length=_STATE["pixels"] + 1, do_sample=True, top_k=0,
            use_cache=True,
        )  # fmt: skip
    assert found.shape[1] == _STATE["pixels"] + 1
    return time.perf_counter() - began


if __name__ == "__main__":
    sides.serve({"prepare": prepare, "draw": draw})
