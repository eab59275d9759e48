"""Published peaks of accelerators, in one table.

Sources:
  TPU v2: peak and bandwidth as in `jax.experimental.pallas.tpu`'s table of chips.
  TPU v3, v4, v5e, v5p, v6e, 7x: cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,tpu7x}, "System architecture".
  links of v2 and v3: Norrie et al. 2021, "The design process for Google's training chips": 496 and 656 Gbit/s in
    each direction. The others from the pages above: v4 2400, v5e 1600, v5p 4800 Gbit/s a chip one way; v6e 800 and 7x
    1200 GB/s in both directions; divided by the chip's links, 4 on a 2D and 6 on a 3D torus.
  which axes of a slice are rings: the same pages, and Austin et al. 2025, "How to scale your model", part 2.
  A100: NVIDIA A100 datasheet (SXM, 80 GB); H100: NVIDIA H100 datasheet (SXM); without sparsity. Between machines: one
    200 Gbit/s (DGX A100) or 400 Gbit/s (DGX H100) port a GPU, from the user guides of these systems.
  memory of TPUs: what libtpu 0.0.42 reports as available, in its error message for a program that is too large.
  memory of GPUs: three quarters of the total, JAX's default for XLA_PYTHON_CLIENT_MEM_FRACTION (docs.jax.dev, "GPU
    memory allocation").
"""

from typing import NamedTuple

GiB = 1 << 30


class Device(NamedTuple):
    """One kind of accelerator. A chip may appear to JAX as two devices, which share its peaks.

    Attributes:
      platform: JAX's name: "tpu", "cuda" or "cpu".
      flops: peak operations a second of a chip, for bfloat16 products with float32 sums.
      flops32: the same for float32 at JAX's default precision: bfloat16 on TPUs, TF32 on GPUs.
      bandwidth: bytes a second from and to a chip's memory.
      memory: bytes that programs may use on one device; None if no limit is known.
      per_chip: devices per chip.
      axes: number of axes of the torus that a slice is cut from; 0 if all chips of a machine are connected directly.
      link: bytes a second of one link in one direction; of all links of a chip together if `axes` is 0.
      ring: an axis is a ring, with linked ends, if its length is a multiple of this.
      whole: whether a slice has rings only if all of its axes qualify.
      machine: chips per machine.
      network: bytes a second, in one direction, that a chip may send to other machines; 0 if the links lead there too.
      name: as written by its maker.
    """

    platform: str
    flops: float
    flops32: float
    bandwidth: float
    memory: int | None
    per_chip: int
    axes: int
    link: float
    ring: int
    whole: bool
    machine: int
    network: float
    name: str


def _tpu(
    tflops: float, gbytes: float, gib: float, per_chip: int, axes: int, gbit: float, ring: int, machine: int, name: str
) -> Device:
    peak, memory = tflops * 1e12, int(gib * GiB)
    return Device(
        "tpu", peak, peak, gbytes * 1e9, memory, per_chip, axes, gbit * 1e9 / 8, ring, axes == 3, machine, 0, name
    )


DEVICES: dict[str, Device] = {
    "v2": _tpu(46, 716, 7.48, 2, 2, 496, 16, 4, "TPU v2"),
    "v3": _tpu(123, 900, 15.48, 2, 2, 656, 32, 4, "TPU v3"),
    "v4": _tpu(275, 1200, 30.75, 1, 3, 400, 4, 4, "TPU v4"),
    "v5e": _tpu(197, 819, 15.75, 1, 2, 400, 16, 8, "TPU v5e"),
    "v5p": _tpu(459, 2765, 95.74, 1, 3, 800, 4, 4, "TPU v5p"),
    "v6e": _tpu(918, 1638, 31.25, 1, 2, 800, 16, 8, "TPU v6e"),
    "tpu7x": _tpu(2307, 7380, 94.75, 2, 3, 800, 4, 4, "TPU7x"),
    "a100": Device(
        "cuda", 312e12, 156e12, 2039e9, int(0.75 * 85_100_068_864), 1, 0, 300e9, 0, False, 8, 25e9, "A100 SXM 80 GB"
    ),
    "h100": Device(
        "cuda", 989.4e12, 494.7e12, 3350e9, int(0.75 * 84_942_979_072), 1, 0, 450e9, 0, False, 8, 50e9, "H100 SXM 80 GB"
    ),
    # Simulated devices of this machine, for trials without an accelerator. There are no published peaks.
    "cpu": Device("cpu", 0, 0, 0, None, 1, 0, 0, 0, False, 0, 0, "simulated CPU device"),
}


class Gpu(NamedTuple):
    """What XLA must know of a GPU to compile for it, from `cudaGetDeviceProperties`."""

    name: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    clock: float
    memory: int
    bandwidth: int
    cache: int
    shared_core: int
    shared_block: int


GPUS = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 85_100_068_864, 2_039_000_000_000, 41_943_040, 167_936, 166_912
    ),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 84_942_979_072, 3_350_000_000_000, 52_428_800, 233_472, 232_448
    ),
}


def target_config(name: str) -> str:
    """Returns XLA's description (GpuTargetConfigProto, as text) of a GPU of `GPUS`."""
    g = GPUS[name]
    return f"""
      gpu_device_info {{
        threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
        shared_memory_per_block: 49152 shared_memory_per_core: {g.shared_core}
        shared_memory_per_block_optin: {g.shared_block}
        core_count: {g.cores} fpus_per_core: {g.lanes} clock_rate_ghz: {g.clock}
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        memory_bandwidth: {g.bandwidth} l2_cache_size: {g.cache} device_memory_size: {g.memory}
        cuda_compute_capability {{ major: {g.capability[0]} minor: {g.capability[1]} }}
        registers_per_core_limit: 65536 registers_per_block_limit: 65536
      }}
      platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
      device_description_str: "{g.name}" """
