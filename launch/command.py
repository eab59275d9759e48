"""Shared by all launchers: separates their flags from the program's, and builds and checks the program's command.

A launcher takes its own flags and passes all others to the program, unchanged and in order. JAX is not imported:
launchers run where there is neither an accelerator nor much memory, such as on a cluster's login node.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from absl import flags

from recvis_jax import cli, errors

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this launcher."""
    flags.DEFINE_string("program", "recvis_jax.train", "Module to run.")
    flags.DEFINE_bool("dry_run", False, "Print what would run, and run nothing.")


BAD_REQUEST = 2  # exit code of a program that would only fail the same way again
STOPPED = 75  # exit code of `launch.attempt` if a run saved and stopped before its end (EX_TEMPFAIL)
_HELP = ("help", "h", "?", "helpshort", "helpfull")


def run(main: Callable[[list[str]], int | None], own_flags: Callable[[], None]) -> None:
    """Runs a launcher: `main(flags of the program)`; help, errors and exit codes are those of `cli.run`."""
    cli.define_flags()
    own_flags()
    own, passed = split(sys.argv[1:], _own())
    if any(word.lstrip("-") in _HELP for word in own):  # the help of `cli` would mix in the program's flags
        FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["debug"])
        print(sys.modules["__main__"].__doc__, "Flags:", FLAGS.main_module_help(), sep="\n")
        sys.exit(0)
    sys.argv[1:] = own
    cli.run(lambda argv: main(passed))


def _own() -> dict[str, flags.Flag]:
    """The flags of the started launcher: its own, and those it adopts from here."""
    names = {f.name: f for f in FLAGS.get_key_flags_for_module(sys.argv[0])}
    return names | {"debug": flags.FLAGS["debug"]}


def split(argv: list[str], own: dict[str, flags.Flag]) -> tuple[list[str], list[str]]:
    """Splits a command line into (the launcher's flags, everything else), each in order.

    `--debug` goes to both, and everything after `--` to the program.
    """
    mine: list[str] = []
    passed: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return mine, passed + rest
        name, given, _ = word.lstrip("-").partition("=")
        negated = name.removeprefix("no")
        if not word.startswith("-") or not (name in own or name in _HELP or (negated in own and own[negated].boolean)):
            passed.append(word)
            continue
        mine.append(word)
        if name in own and not own[name].boolean and not given and rest:
            mine.append(rest.pop(0))
        if "debug" in (name, negated):
            passed.append(word)
    return mine, passed


def value(passed: list[str], name: str) -> str | None:
    """Returns the value of the program's flag `--name`, or None."""
    found = None
    for i, word in enumerate(passed):
        flag, given, text = word.lstrip("-").partition("=")
        if word.startswith("-") and flag == name:
            found = text if given else "".join(passed[i + 1 : i + 2])
    return found


def workdir(passed: list[str]) -> str:
    """Returns the run's folder.

    Raises:
      BadRequest: there is none.
    """
    found = value(passed, "workdir")
    if not found:
        raise errors.BadRequest("--workdir is missing, for instance --workdir=runs/first.")
    return found


def python(program: str, passed: Iterable[str], interpreter: str = sys.executable) -> list[str]:
    """Returns the words of the command that runs `program`."""
    return [interpreter, "-m", program, *passed]


def shown(words: Iterable[str], env: dict[str, str] | None = None) -> str:
    """Returns a command as typed in a shell."""
    return " ".join([*(f"{k}={shlex.quote(v)}" for k, v in (env or {}).items()), shlex.join(words)])


def check(passed: list[str]) -> None:
    """Asks the program for its flags, so that a wrong one is refused now, not after a wait in a queue.

    Raises:
      BadRequest: there is no such program, or it does not know a flag.
    """
    program = FLAGS.program
    done = subprocess.run(python(program, ["--helpfull"]), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    known = set(re.findall(r"^ +(?:-\w,)?--(?:\[no\])?([\w.]+):", done.stdout, re.MULTILINE))
    if not known:
        if done.returncode and re.search(rf"No module named '?{re.escape(program)}\b", done.stderr):
            raise errors.BadRequest(f"--program={program}: there is no such module.")
        return  # another kind of program
    for word in passed:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("--") and "." not in name and not {name, name.removeprefix("no")} & known:
            raise errors.BadRequest(
                f"unknown flag --{name}: it is neither the launcher's nor {program}'s."
                + errors.nearest(name, [*_own(), *known])
            )


def job_name(folder: str) -> str:
    """Returns a name for the run in `folder` that queues, hosts and clouds accept: a-z, 0-9 and dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(folder).name.lower()).strip("-")[:40].strip("-")
    return name if name[:1].isalpha() else f"run-{name}".strip("-")


def say(text: str) -> None:
    """Prints a message of the launcher, marked to distinguish it from the program's output."""
    print(f"launch: {text}", file=sys.stderr, flush=True)
