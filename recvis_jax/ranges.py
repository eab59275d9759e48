"""Valid ranges of a config's numbers, by the name of the key, which has the same meaning in every section.

The bounds are wide: values outside are surely mistakes, fail only after hours, or fill the memory. Limits that depend
on the data or on other keys are checked where these are known. This module imports nothing of ours.
"""

from typing import NamedTuple


class Range(NamedTuple):
    """Numbers from `low` to `high`; `above` excludes `low`, `below` excludes `high`."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN is not."""
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        """Returns the range as text for messages."""
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        return f"{'above' if self.above else 'from'} {low} to {'below ' if self.below else ''}{high}"


_FRACTION = Range(0, 1)
_BELOW_ONE = Range(0, 1, below=True)
_SEED = Range(0, 2**32 - 1)
_STEPS = Range(0, 10**9)
_LEAST = Range(0, 10**9, above=True)
_WIDTH = Range(1, 2**16)

RANGES: dict[str, Range] = {
    # top level
    "seed": _SEED,
    "epochs": Range(0, 10**6, above=True),
    "steps": Range(1, 10**9),
    "batch_size": Range(1, 2**20),
    "eval_batch_size": Range(1, 2**20),
    "accumulate": Range(1, 2**16),
    "ema_decay": _BELOW_ONE,
    "log_every": _LEAST,
    "eval_every": _LEAST,
    "checkpoint_every": _LEAST,
    "keep_checkpoints": Range(2, 1000),
    "every": _LEAST,
    "early_stop": Range(0, 10**6),
    # data
    "threads": Range(1, 1024),
    "workers": Range(0, 256),
    "mock": Range(0, 10**6),
    "most_objects": Range(0, 10**5),
    "visible": _FRACTION,
    "per_class": Range(0, 10**7),
    "subset_seed": _SEED,
    # texts
    "tokens": Range(259, 10**6),
    "most": Range(2, 10**5),
    # windows
    "scales": Range(1, 1000),
    "overlap": Range(0, 0.95),
    "background": _FRACTION,
    # optimizers and their schedules
    "lr": Range(0, 10**4),
    "base_batch": Range(0, 2**24),
    "warmup": _STEPS,
    "warmup_epochs": Range(0, 10**6),
    "weight_decay": Range(0, 10**4),
    "clip_norm": Range(0, 10**9, above=True),
    "layer_decay": Range(0, 1, above=True),
    "momentum": _BELOW_ONE,
    "b1": _BELOW_ONE,
    "b2": _BELOW_ONE,
    "eps": _FRACTION,
    "trust_coefficient": Range(0, 1000, above=True),
    "decay_rate": _FRACTION,
    "clipping_threshold": Range(0, 10**9, above=True),
    "min_dim_size_to_factor": Range(1, 2**31 - 1),
    "ns_steps": Range(1, 100),
    "consistent_rms": Range(0, 1000, above=True),
    "final": _FRACTION,
    "start": _FRACTION,
    "peak": _STEPS,
    "cooldown": _STEPS,
    "boundaries": _STEPS,
    "factor": Range(0, 10**6),
    "timescale": Range(1, 10**9),
    # tasks
    "label_smoothing": _BELOW_ONE,
    "delta": Range(0, 10**6, above=True),
    "aux_weight": Range(0, 1000),
    "beams": Range(1, 1000),
    "alpha": Range(0, 100),
    "no_object": _FRACTION,
    "l1": Range(0, 1000),
    "giou": Range(0, 1000),
    "nms": _FRACTION,
    "size_weight": Range(0, 1000),
    "least_overlap": Range(0, 1, above=True, below=True),
    # models
    "num_classes": Range(0, 2**22),
    "vocabulary": Range(4, 10**6),
    "encoder_depth": Range(0, 1300),
    "width": _WIDTH,
    "widths": _WIDTH,
    "hidden": _WIDTH,
    "tokens_dim": _WIDTH,
    "channels_dim": _WIDTH,
    "decoder_width": _WIDTH,
    "widen": Range(1, 64),
    "stem_width": Range(0, 2**16),
    "output_stride": Range(8, 32),
    "stride": Range(1, 2**16),  # also of sparse attention, in tokens
    "rates": Range(1, 255),
    "queries": Range(1, 2**16),
    "depth": Range(1, 1300),
    "decoder_depth": Range(0, 1300),
    "blocks": Range(0, 500),
    "stages": Range(1, 500),
    "heads": Range(1, 1024),
    "decoder_heads": Range(1, 1024),
    "patch_size": Range(1, 1024),
    "kernel_size": Range(1, 255),
    "stem_size": Range(1, 255),
    "bn_groups": Range(1, 2**16),
    "norm_groups": Range(0, 2**16),
    "norm_eps": Range(0, 1, above=True),
    "dropout": _BELOW_ONE,
    "dropout_aux": _BELOW_ONE,
    "drop_path": _BELOW_ONE,
    "mask_ratio": _BELOW_ONE,
    "layer_scale": Range(0, 1000),
    "head_scale": Range(0, 1000, above=True),
    # the mesh
    "data": Range(1, 2**20),
    "fsdp": Range(1, 2**20),
    "model": Range(1, 2**20),
}
