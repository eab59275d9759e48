"""Names of machines, `v5e:16x16` or `h100:8`, and the devices to compile for.

A name is a kind of `devices.DEVICES`, a colon, and the chips: for TPUs along the axes of a torus, for GPUs their number
(in machines of 8), and for `cpu` the number of simulated devices of this machine.
"""

import contextlib
import difflib
import importlib.util
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from recvis_jax import errors, tried
from recvis_jax.planning.devices import DEVICES, Device, GiB, target_config

# Available slices, by chips along the axes, from the pages that `devices` names. Kinds with three axes also come in
# all shapes of multiples of 4, up to the whole pod.
_PLANES = {
    "v2": "2x2 4x4 8x8 8x16 16x16",
    "v3": "2x2 4x4 4x8 8x8 8x16 16x16 16x32 32x32",
    "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
}
_CUBES = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
_SMALL_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4"

_GPU_FLAGS = ("--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false")


class Topology(NamedTuple):
    """A machine, or a slice of a pod.

    Attributes:
      name: such as `v5e:16x16`.
      kind: key of `devices.DEVICES`.
      shape: chips along the axes.
      device: published numbers of this kind.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    device: Device

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Number of devices that JAX sees."""
        return self.chips * self.device.per_chip

    @property
    def rings(self) -> tuple[bool, ...]:
        """Which axes are rings."""
        ring = self.device.ring
        found = [bool(ring) and n % ring == 0 for n in self.shape]
        return tuple(f and (all(found) or not self.device.whole) for f in found)


def shapes(kind: str) -> list[str]:
    """Lists the slices of a kind of TPU."""
    if kind in _PLANES:
        return _PLANES[kind].split()
    sides = range(4, 28, 4)
    whole = [s for s in itertools.combinations_with_replacement(sides, 3) if math.prod(s) <= _CUBES[kind]]
    return _SMALL_CUBES.split() + ["x".join(map(str, s)) for s in sorted(whole, key=math.prod)]


def parse(names: str) -> list[Topology]:
    """Parses `v5e:16x16,h100:8`.

    Raises:
      BadRequest: an unknown kind or slice; the message names the nearest.
    """
    found = [_parse(name.strip()) for name in names.split(",") if name.strip()]
    if not found:
        raise errors.BadRequest("--topology is missing, for instance --topology=v5e:2x4 or v4:4x4x4,h100:8.")
    if twice := next((t.name for t in found if sum(t.name == u.name for u in found) > 1), None):
        raise errors.BadRequest(f"--topology names {twice} twice.")
    return found


def with_memory(topology: Topology, gib: float) -> Topology:
    """Returns the machine with `gib` GiB of usable memory per device."""
    return topology._replace(device=topology.device._replace(memory=int(gib * GiB)))


def _parse(name: str) -> Topology:
    kind, colon, size = name.lower().partition(":")
    device = errors.choose(DEVICES, kind, "kind of accelerator in --topology")
    example = "8" if device.axes == 0 else shapes(kind)[2]
    parts = size.split("x")
    if not colon or not all(p.isdigit() and int(p) for p in parts):
        raise errors.BadRequest(f"--topology={name} is not a kind and its chips, such as {kind}:{example}.")
    shape = tuple(map(int, parts))
    if device.axes:
        if size not in shapes(kind):
            raise errors.BadRequest(
                f"there is no slice {name}. The nearest is {kind}:{_nearest(size, shape, shapes(kind))}. "
                f"There are: {', '.join(shapes(kind)[:12])}{', ...' if len(shapes(kind)) > 12 else ''}."
            )
    elif len(shape) > 1:
        raise errors.BadRequest(f"--topology={name}: for {kind} give the number of chips, such as {kind}:8.")
    elif device.machine and shape[0] > device.machine and shape[0] % device.machine:
        near = max(1, round(shape[0] / device.machine)) * device.machine
        raise errors.BadRequest(
            f"a machine has {device.machine} {kind}, and {name} is not a whole number of machines. The nearest is "
            f"{kind}:{near}."
        )
    return Topology(f"{kind}:{size}", kind, shape, device)


def _nearest(size: str, shape: Sequence[int], there: list[str]) -> str:
    def distance(other: str) -> tuple[float, float]:
        chips = math.prod(map(int, other.split("x")))
        return abs(math.log(chips / math.prod(shape))), -difflib.SequenceMatcher(None, size, other).ratio()

    return min(there, key=distance)


def start_jax(topologies: Sequence[Topology], level: str) -> None:
    """Sets the environment that JAX reads at its start, and starts it on this machine's CPU.

    Args:
      topologies: machines to compile for.
      level: optimisation level of the compiler, "O0" to "O3", or "default".

    Raises:
      BadRequest: a package is missing; the message has the command that installs it.
    """
    platforms = {t.device.platform for t in topologies}
    given = os.environ.get("XLA_FLAGS", "")
    flags = [*_GPU_FLAGS] if "cuda" in platforms and tried.usable("gpu plans") else []
    if platforms == {"cpu"}:  # the flags that programs use on CPUs
        flags += tried.xla_flags(given)
    if "cpu" in platforms:
        if "device_count" not in given:
            flags.append(
                f"--xla_force_host_platform_device_count={max(t.devices for t in topologies if t.kind == 'cpu')}"
            )
    os.environ["XLA_FLAGS"] = " ".join([given, *(f for f in flags if f.split("=")[0] not in given)]).strip()
    os.environ["JAX_PLATFORMS"] = "cpu"  # even if there is an accelerator: nothing runs on it
    # Stops libtpu from querying this machine, which is not a TPU host, and from writing log files and warnings.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # a training or another plan may run at the same time
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_LOG_DIR": "disabled", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5e-4", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}
    with quiet():
        import jax

        jax.config.update("jax_platforms", "cpu")  # if JAX was imported before
        jax.devices()
    check_installed(platforms)
    jax.config.update("jax_optimization_level", {"default": "UNKNOWN"}.get(level, level))


def check_installed(platforms: set[str]) -> None:
    """Raises `BadRequest` if the compiler for a platform is missing; the message has the command that installs it."""
    import jax

    needs = {"tpu": ("libtpu", "tpu", "TPUs"), "cuda": ("jax_plugins.xla_cuda12", "cuda12-local", "GPUs")}
    for platform in sorted(platforms & set(needs)):
        module, extra, what = needs[platform]
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise errors.BadRequest(
                f"the compiler for {what} is missing; install it with: pip install 'jax[{extra}]=={jax.__version__}'"
            )


def open_devices(topology: Topology) -> list[Any]:
    """Returns devices to compile for; only those of `cpu` can run programs."""
    import jax
    from jax.experimental import topologies

    device = topology.device
    if device.platform == "cpu":
        there = jax.devices("cpu")
        if len(there) < topology.devices:
            raise errors.BadRequest(f"{topology.name}: XLA_FLAGS of this process provide only {len(there)} devices.")
        return list(there[: topology.devices])
    with quiet():
        if device.platform == "cuda":
            machines = max(1, topology.chips // device.machine)
            shape = f"1x{machines}x{topology.chips // machines}"
            options = {"target_config": target_config(topology.kind), "topology": shape}
            return topologies.get_topology_desc(topology.kind, "cuda", **options).devices
        more: dict[str, Any] = {}
        if topology.kind == "v4":
            more["chip_config_name"] = "megacore"  # both cores of a chip as one device, as Cloud TPUs show them
        if topology.chips == 1:
            more["chips_per_host_bounds"] = (1, 1, 1)
        return topologies.get_topology_desc(topology.name, "tpu", **more).devices


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what libraries write to stderr, unless --debug is given."""
    if "--debug" in sys.argv:
        yield
        return
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(before, 2)
        os.close(before)
