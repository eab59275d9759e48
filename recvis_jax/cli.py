"""The frame of every program: flags, exit codes, and the start of JAX.

Exit codes: 0 done (also when stopped by SIGTERM), 1 failure while running, 2 bad request, 130 after Ctrl-C (training
has saved).
JAX is not imported before `start_jax`, so `--help` answers at once.
"""

import functools
import gc
import multiprocessing
import os
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from recvis_jax import errors, overrides, tried
from recvis_jax.training import processes

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags that every program has, unless they are defined already."""
    if "distributed" in FLAGS:
        return
    flags.DEFINE_bool("debug", False, "Print the traceback of an error.")
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "off"],
        "auto: joins the other processes that Slurm, Open MPI or a TPU pod started.",
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if nothing is detected.")
    flags.DEFINE_integer("num_processes", None, "How many processes run together.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)


_SHARED_FLAGS = ("debug", "distributed", "coordinator", "num_processes", "process_id")

# Settings of the C library's allocator, read when a process starts: huge pages, and memory is kept for the next step
# instead of returned. Otherwise the intermediates of every step are mapped, zeroed and unmapped page by page.
CPU_MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776:"
    "glibc.malloc.top_pad=67108864"
)


def run(main: Callable[[list[str]], int | None], own_flags: Callable[[], None] = lambda: None) -> None:
    """Runs an absl program: `main(argv)` with errors as one line on stderr and the exit codes above.

    Args:
      main: the program.
      own_flags: defines its flags. Programs define them when they run, so that all can be imported together.
    """
    if _wants_malloc():
        # Restart the program in the same process, now with the allocator's settings.
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": CPU_MALLOC})

    def guarded(argv: list[str]) -> int:
        if len(argv) > 1 and not getattr(main, "takes_arguments", False):
            return _report(errors.BadRequest(f"unexpected argument {argv[1]!r}; flags are written --name=value."), 2)
        try:
            return main(argv) or 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            if processes.several():
                os._exit(130)  # a normal exit would wait for the other processes
            return _leave(130)
        except Exception as e:
            code = 2 if isinstance(e, errors.BadRequest) else 1
            processes.end(e, lambda e: _report(e, code))
            return _leave(_report(e, code))

    if not isinstance(sys.stdout, _Plain):
        sys.stdout = _Plain(sys.stdout)  # type: ignore[assignment]
    theirs = set(FLAGS)  # flags of libraries
    define_flags()
    own_flags()
    own = sorted({*FLAGS} - theirs | {*_SHARED_FLAGS})
    # Users need not see warnings of libraries; errors reach us as exceptions.
    logging.set_verbosity(logging.ERROR if "--debug" in sys.argv else logging.FATAL)
    if "--debug" not in sys.argv:
        sys.unraisablehook = _unraisable
        if not sys.warnoptions:  # such as python -W or PYTHONWARNINGS
            warnings.simplefilter("ignore")
    app.run(guarded, flags_parser=functools.partial(_parse, own))


class _Plain:
    """A stream that makes all characters printable but line feeds and tabs: names from outside cannot move the cursor.

    A name may contain line feeds, too; `errors.printable` escapes them when a name is printed.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # terminals that cannot show ä

    def write(self, text: str) -> int:
        return self._stream.write(errors.printable_lines(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _leave(code: int) -> int:
    """Returns the exit code after an error; ends the process here if a normal exit would wait for threads.

    After a failed save, some of its threads wait for minutes in vain.
    """
    main = threading.main_thread()
    if any(t is not main and t.is_alive() and not t.daemon for t in threading.enumerate()):
        for child in multiprocessing.active_children():
            child.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _wants_malloc() -> bool:
    """Whether this is a CPU under Linux with an allocator that neither we nor the user have configured."""
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return False
    flags_given = sys.argv[1:]
    program = sys.orig_argv[1 : len(sys.orig_argv) - len(flags_given)]  # such as: -m recvis_jax.train
    named = program and ("-m" in program[:-1] or program[-1] == sys.argv[0]) and "-c" not in program
    if not named or sys.orig_argv[1:] != [*program, *flags_given]:
        return False  # called by another program, which must not be restarted
    return _on_cpu()


def _on_cpu() -> bool:
    """Whether JAX will run on this machine's CPU, as far as is known before it starts."""
    accelerators = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" or not (platforms or any(map(os.path.exists, accelerators)))


def _unraisable(found: Any) -> None:
    """Shows an exception that nothing handles, unless it comes from the remains of a failed save."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


# Flags that a program lacks, and what to use instead if the program has it: (flag, what to write).
_INSTEAD = {
    "workdir": (("weights", "--weights=RUN"), ("data_dir", "--data_dir=FOLDER"), ("config", "--config=FILE")),
    "weights": (("workdir", "--workdir=RUN"),),
    "run": (("workdir", "--workdir=RUN"), ("weights", "--weights=RUN")),
    "output": (("out", "--out=FOLDER"), ("workdir", "--workdir=FOLDER")),
    "out": (("workdir", "--workdir=FOLDER"),),
    "data": (("source", "--source=FOLDER"), ("data_dir", "--data_dir=FOLDER")),
}
# Keys of a config that are often written as flags.
_KEYS = {
    "lr": "optim.lr",
    "learning_rate": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "data_dir": "data.data_dir",
    "dataset": "data.name",
    "model": "model.name",
    **{key: key for key in ("epochs", "steps", "batch_size", "seed", "init_from", "dtype", "checkpoint_dir")},
}


def _parse(own: Sequence[str], argv: list[str]) -> list[str]:
    if any(a in ("--help", "-help", "-h", "-?") for a in argv[1:]):
        for name in (*_SHARED_FLAGS, *({"config"} & {*own})):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
        print(sys.modules["__main__"].__doc__ or "", "Flags:", flags.FLAGS.main_module_help(), sep="\n")
        sys.exit(0)
    try:
        words, found = overrides.split(flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False))
        if "config" in own:
            FLAGS["config"].overrides = found  # type: ignore[attr-defined]
        elif found:
            raise errors.BadRequest(f"unknown flag {errors.brief(found[0])}: {_program()} takes no config.")
        return flags.FLAGS([*argv[:1], *words])
    except flags.UnrecognizedFlagError as e:
        sys.exit(_report(errors.BadRequest(f"unknown flag --{errors.brief(e.flagname)}{_instead(e.flagname, own)}"), 2))
    except Exception as e:
        sys.exit(_report(e, 2))


def _instead(name: str, own: Sequence[str]) -> str:
    """Completes the sentence about an unknown flag with what to use instead, from this program's own flags."""
    for flag, text in _INSTEAD.get(name, ()):
        if flag in own:
            return f": {_program()} takes {text}."
    if name in _KEYS and "config" in own:
        return f": it is a key of the config, --config.{_KEYS[name]}=VALUE."
    shown = [flag for flag in own if flag not in _SHARED_FLAGS]
    return f".{errors.nearest(name, shown)} {_program()} has --{', --'.join(shown)}."


def _program() -> str:
    """Returns the name of the program that was started."""
    return Path(sys.argv[0]).stem


_LONGEST = 2400  # characters of an error; a list of all models needs that many


def _report(error: BaseException, code: int) -> int:
    if "--debug" in sys.argv:
        traceback.print_exc()
    text = str(error)
    text = " ".join(text.split()) or type(error).__name__
    if len(text) > _LONGEST:  # it quotes a very long name, path or value; beginning and end tell most
        text = f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 3 :]}"
    if not isinstance(error, (errors.BadRequest, errors.Failure, flags.Error)):
        kind = type(error).__name__
        text = text if isinstance(error, OSError) else f"{kind}: {text[:600]}"
        text += "" if "--debug" in sys.argv else " (--debug shows the traceback)"
    print(f"error: {errors.printable(text)}", file=sys.stderr)
    return code


def start_jax(compile_cache: str | None = "default") -> None:
    """Sets the environment that JAX reads at its start, and starts it.

    Args:
      compile_cache: folder of the persistent compilation cache; "default" is `$JAX_COMPILATION_CACHE_DIR` or
        `~/.cache/recvis_jax/xla`, None or "" turns it off.
    """
    given = os.environ.get("XLA_FLAGS", "")
    added = tried.xla_flags(given) if _on_cpu() else []
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
    import jax  # after the flags

    # Imported objects stay, and tracing makes many objects but little garbage: collect garbage less often.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)

    if compile_cache == "default":
        compile_cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(Path.home() / ".cache/recvis_jax/xla")
    if compile_cache:
        jax.config.update("jax_compilation_cache_dir", compile_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if FLAGS.distributed == "auto":
        processes.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    elif FLAGS.coordinator or FLAGS.num_processes or FLAGS.process_id:
        raise errors.BadRequest("--distributed=off excludes --coordinator, --num_processes and --process_id.")
    several = "xla_force_host_platform_device_count" in given or processes.several()
    plain = not tried.usable("calling thread") or "JAX_CPU_ENABLE_ASYNC_DISPATCH" in os.environ
    if _on_cpu() and not several and not plain:
        # Run programs in the calling thread, for which the C library keeps memory. Memory of other threads is mapped,
        # zeroed and unmapped in every step, which takes up to a tenth of a step's time.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if _debugging() and _on_cpu():
        for line in tried.remarks():
            print(f"jax: {line}", file=sys.stderr)
    try:
        jax.devices()
    except RuntimeError as e:
        raise errors.Failure(f"JAX found no usable device: {e}") from e


def about_jax(settings: bool | None = None) -> str:
    """Returns a line about the version of JAX and its devices.

    Args:
      settings: whether to add the settings it was started with; by default with --debug.
    """
    import jax

    devices = jax.devices()
    kinds = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    if jax.process_count() > 1:
        kinds += f" in {jax.process_count()} processes"
    line = f"jax {jax.__version__} on {kinds}"
    if not (_debugging() if settings is None else settings):
        return line
    names = ("XLA_FLAGS", "GLIBC_TUNABLES", "JAX_CPU_ENABLE_ASYNC_DISPATCH", "RECVIS_JAX_ONEDNN")
    given = " ".join(f"{name}={os.environ[name]!r}" for name in names if os.environ.get(name))
    return f"{line}; {given}" if given else line


def _debugging() -> bool:
    return bool("debug" in FLAGS and FLAGS.is_parsed() and FLAGS.debug)


_shown: dict[str, float] = {}  # name that `progress` showed last -> when


def progress(name: str, done: int, length: int) -> None:
    """Shows progress on a terminal; elsewhere does nothing.

    Args:
      name: of the task.
      done, length: how much is done, and how much there is in total.
    """
    if not sys.stderr.isatty():
        return
    now, over = time.monotonic(), done >= length
    if not over and now - _shown.get(name, 0) < 0.1:
        return  # a slow remote terminal must not slow the work down
    _shown.clear()
    _shown[name] = now
    width = max(20, shutil.get_terminal_size().columns - 1)
    line = f": {done:,} of {length:,}"
    line = errors.printable(name)[: width - len(line)] + line
    print(f"\r\x1b[K{line}", end="\n" if over else "", file=sys.stderr, flush=True)
