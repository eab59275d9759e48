"""Reads code and commands out of the pages, and checks a command by the program's own flags and config, unrun."""

import importlib
import re
import shlex

import programs
from absl import flags

from recvis_jax import build, config, errors, models, overrides, pretrained, represent, trained
from recvis_jax.data import builders
from recvis_jax.evaluation import evaluator, probes
from recvis_jax.looking import SHOWS
from recvis_jax.tasks import TASKS
from recvis_jax.train import train
from recvis_jax.training.optim import make_optimizer

# Words that a page writes where a reader has a file, a folder or a name.
_ANY = re.compile(r"\.\.\.|<.*>")


def python_blocks(text: str) -> list[str]:
    """Returns the fenced blocks of Python, but for those that a comment before them marks as not run."""
    return [code for mark, code in _python(text) if not mark]


def marked_blocks(text: str) -> list[str]:
    """Returns why blocks of Python are not run, of those marked `<!-- not run: WHY -->`."""
    return [mark for mark, _ in _python(text) if mark]


def _python(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(?:<!-- not run: (.*?) -->\n+)?^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shell_lines(text: str) -> list[str]:
    """Returns the commands of a page: the lines of its indented and ```sh blocks, and code that begins with python."""
    text = re.sub(r"^```python\n.*?^```\n", "", text, flags=re.DOTALL | re.MULTILINE)
    fenced = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```\n", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^ {4}\S.*\n(?: {4}.*\n|\n(?= {4}))*)", f"{rest}\n", re.MULTILINE)
    blocks = [*fenced, *(re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in indented)]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"`(python (?:-m|\w+/)[^`]+)`", rest)]
    return [line for line in (*lines, *inline) if line and not line.startswith("#")]


def check(line: str) -> str:
    """Checks a command, and returns what kind it is: "program", "launcher", "benchmark", "make" or "" for another.

    Raises:
      Exception: there is no such program, flag, key, config, target or file.
    """
    words = shlex.split(line, comments=True)
    if words[:2] == ["python", "-m"] and words[2].startswith("recvis_jax."):
        check_program(words[2], words[3:])
        return "program"
    if words[:2] == ["python", "-m"] and words[2].startswith("launch."):
        check_launcher(words[2], words[3:])
        return "launcher"
    if words[0] == "python" and re.match(r"(benchmarks|tests|docs)/", words[1]):
        text = (programs.ROOT / words[1]).read_text()
        for flag in words[2:]:
            name = flag.partition("=")[0].lstrip("-")
            assert not flag.startswith("--") or re.search(rf"[\"'](--)?{name}[\"']", text), f"{words[1]} has no {flag}"
        return "benchmark"
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (programs.ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all("=" in word or word in targets for word in words[1:]), line
        return "make"
    return ""


def check_launcher(module: str, words: list[str]) -> None:
    """Checks a launcher's own flags, and those of the program that it starts."""
    from launch import command

    launcher = importlib.import_module(module)
    with _defined(launcher.define_flags):
        own = {name: flags.FLAGS[name] for name in flags.FLAGS if name not in _LIBRARIES} | {"debug": None}
        mine, passed = _split(command, words, own)
        flags.FLAGS([module, *mine])
    if not any(map(_ANY.search, passed)):
        check_program("recvis_jax.train", [word for word in passed if not word.startswith("--grid")])


def _split(command, words, own):
    own.pop("debug")
    return command.split([w for w in words if not w.startswith("-") or not _ANY.fullmatch(w.partition("=")[2])], own)


def check_program(module: str, words: list[str]) -> None:
    """Checks flags, names that flags take, and the config with its keys."""
    program = importlib.import_module(module)
    given = [word for word in words if not _ANY.search(word) and word != "--help"]
    words, found = overrides.split(given)
    with _defined(program.define_flags):
        rest = flags.FLAGS([module, *words])[1:]
        assert not rest or getattr(program.main, "takes_arguments", False), f"{module} takes no {rest}"
        values = {name: flags.FLAGS[name].value for name in flags.FLAGS if name not in _LIBRARIES}
        named = config_of(values, found, module) if values.get("config") else None
        assert not found or named is not None or len(given) < len(words) + len(found), f"{module} has no config"
    for name, there in NAMES.items():
        for value in values.get(name) or ():
            assert value in there(), f"{module} --{name}={value}"
    if values.get("dataset") and module.endswith("prepare"):
        errors.choose(dict.fromkeys(builders.NAMES), values["dataset"], "data set")
    if model := values.get("model"):
        for name in model if isinstance(model, list) else model.split(","):
            library, _, inner = name.rpartition("/")
            errors.choose(pretrained.LIBRARIES if library else models.CONSTRUCTORS, library or inner, "model")


NAMES = {"show": lambda: SHOWS, "protocols": lambda: probes.PROTOCOLS, "baselines": lambda: ("random", "pixels")}


def config_of(values, found, module):
    """Reads the config that a command names, applies its keys, and checks every section."""
    flag = config.ConfigFlag("")
    flag.value, flag.overrides = str(programs.ROOT / values["config"]), found
    read = config.read(flag, "")
    if represent.SECTION in read:
        assert module != "recvis_jax.train", "such a config is learnt by `features`"
        errors.check_kwargs(represent.Plan, read[represent.SECTION], "config.learn")
    else:
        errors.check_kwargs(train, read, "config", given=("workdir", "config", "report"))
        of_run = ("total_steps", "batch_size", "steps_per_epoch", "params")
        errors.check_kwargs(make_optimizer, read["optim"], "config.optim", given=of_run)
        task = dict(read.get("task") or {})
        made = TASKS[task.pop("name", "classify")]
        known = ("model", "image_shape", "num_classes", "multi_label", "fields", "vocabulary")
        errors.check_kwargs(made, task, "config.task", given=known)
        evaluator.build_metrics(read.get("metrics") or (), 10)
        if read.get("probe"):
            errors.check_kwargs(trained.make_prober, read["probe"], "config.probe", extra=("every",), given=("run",))
        if isinstance(init := read.get("init_from"), dict):
            given = ("model", "variables", "say", "template")
            errors.check_kwargs(pretrained.load, init, "config.init_from", extra=("into", "source"), given=given)
    errors.check_kwargs(build.open_data, read["data"], "config.data", given=("recorded",))
    model = read["model"]
    takes = errors.keywords(errors.choose(models.CONSTRUCTORS, model["name"], "model"))
    of_data = {"num_classes": 10, "vocabulary": 300}  # which the data say
    models.create(**{k: v for k, v in of_data.items() if k in takes}, **model)
    return read


_LIBRARIES = set(flags.FLAGS)


class _defined:
    """Defines the flags of one program for a while."""

    def __init__(self, define):
        from recvis_jax import cli

        self._define = (cli.define_flags, define)

    def __enter__(self):
        self._before = set(flags.FLAGS)
        for define in self._define:
            define()

    def __exit__(self, *raised):
        for name in set(flags.FLAGS) - self._before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
