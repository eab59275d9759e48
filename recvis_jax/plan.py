"""Plans a training on machines that are not here: what fits, what it costs, how long it takes at least.

  python -m recvis_jax.plan --config=configs/imagenet/vit_b16.py --topology=v5e:2x4
  python -m recvis_jax.plan --config=configs/imagenet/vit_h14.py --topology=v5e:4x4,v4:2x2x2,h100:8 --search

The config's real train step is compiled for these devices; neither the devices nor the data are needed. It needs the
compiler for TPUs, pip install 'jax[tpu]', or for GPUs, pip install 'jax[cuda12-local]'; `cpu:8` needs neither.
"""

import sys
from typing import Any

from absl import flags

from recvis_jax import cli, errors
from recvis_jax.config import define_flag, read

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    define_flag("Config file, such as configs/imagenet/vit_b16.py[:argument].")
    flags.DEFINE_string("topology", "", "Machines, such as v5e:16x16,v4:4x4x4,h100:8.")
    flags.DEFINE_bool("search", False, "Try other strategies, and list those that fit, the cheapest first.")
    flags.DEFINE_enum(
        "level", "O0", ["O0", "O1", "O2", "O3", "default"],
        "Optimisation level of the compiler. O0 is 4 to 10 times faster than default, the level for training; memory "
        "differs by a few percent, and with split parameters the communication, too.",
    )  # fmt: skip
    flags.DEFINE_float(
        "memory", None, "GiB that a program may use on a device, instead of the known number.", lower_bound=0
    )


def main(argv: list[str]) -> None:
    del argv
    config = read(FLAGS["config"], "configs/imagenet/vit_b16.py")
    if not FLAGS.topology:
        raise errors.BadRequest("--topology is missing, for instance --topology=v5e:2x4.")
    from recvis_jax.planning import topology

    machines = topology.parse(FLAGS.topology)
    if FLAGS.memory is not None:
        machines = [topology.with_memory(machine, FLAGS.memory) for machine in machines]
    topology.start_jax(machines, FLAGS.level)
    lacking = [text for machine in machines if (text := _plan(config, machine, FLAGS.search, FLAGS.level))]
    if lacking:
        raise errors.Failure("; ".join(lacking))


def _plan(config: dict[str, Any], machine: Any, searched: bool, level: str) -> str:
    """Prints the plan for one machine; returns why it does not fit, or an empty string if it does."""
    from recvis_jax.planning import planner, report, search

    if not searched:
        plan = planner.make_plan(config, machine)
        print(report.describe(plan, level), flush=True)
        return "" if plan.fits else report.verdict(plan)
    planner.check_config(config)
    found = search.search(config, machine, planner.make_plan, lambda text: print(f"  {text}", file=sys.stderr))
    if not found:
        print(f"{machine.name}: none of the strategies fits", flush=True)
        return f"{machine.name}: none of the strategies fits"
    print(f"{machine.name}: {len(found)} strategies fit, the cheapest first (compiled at {level})")
    print(report.table(found))
    print(f"\nthe first of them:\n{report.describe(found[0], level)}", flush=True)
    return ""


if __name__ == "__main__":
    cli.run(main, define_flags)
