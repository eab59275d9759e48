"""Builds the notebooks: executes the percent scripts of this folder into built/NN_name.ipynb, with their figures.

  python notebooks/build.py                  all of them
  python notebooks/build.py 03 04            those whose names begin so
  python notebooks/build.py --check          each twice; fails where two executions differ in a text or in a pixel

A cell that raises, an assertion among them, ends the build; but where a package that it downloads cannot be had
(`recvis_jax.pretrained.packages.Unavailable`), the notebook ends there, with that sentence. What is written has neither
times nor random ids, and without what cells print to stderr (warnings and progress), so that the same code gives the
same file.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat

HERE = Path(__file__).resolve().parent
SOURCES = {path.stem: path for path in sorted(HERE.glob("[0-9][0-9]_*.py"))}
SECONDS = 600  # that a cell may take, on a machine that is busy otherwise


def read(source: Path) -> nbformat.NotebookNode:
    """Returns a percent script as a notebook that was not executed; cells are numbered by their ids.

    Links to other scripts become links to the notebooks made of them, which lie beside this one.
    """
    notebook = jupytext.read(source, fmt="py:percent")
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"
        cell.metadata = {}
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(\]\(\d\d_\w+)\.py\)", r"\1.ipynb)", cell.source)
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def environment() -> dict[str, str]:
    """Returns the variables of the process that executes cells: one device, and this checkout's package."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
    return {**os.environ, **own, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}


def execute(source: Path) -> nbformat.NotebookNode:
    """Returns the executed notebook of a script; see `missing` for one that ended early.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised; the message shows the cell and the traceback.
    """
    notebook = read(source)
    with tempfile.TemporaryDirectory() as folder:  # what cells write is gone afterwards
        client = nbclient.NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute(env=environment())
        except nbclient.exceptions.CellExecutionError as e:
            if e.ename != "Unavailable":
                raise
            notebook.metadata["missing"] = e.evalue
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def missing(notebook: nbformat.NotebookNode) -> str:
    """Returns what a notebook needs and could not be had here; empty if it was executed to its end."""
    return notebook.metadata.get("missing", "")


def _plain(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Takes addresses of objects out of an output, which differ each time."""
    if "data" in output and "text/plain" in output.data:
        output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", output.data["text/plain"])
    return output


def differences(first: nbformat.NotebookNode, second: nbformat.NotebookNode) -> list[str]:
    """Returns the ids of cells whose outputs differ."""
    pairs = zip(first.cells, second.cells, strict=True)
    return [one.id for one, other in pairs if one.get("outputs") != other.get("outputs")]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; all notebooks by default")
    parser.add_argument("--check", action="store_true", help="execute twice, and write nothing")
    parser.add_argument("--out", type=Path, default=HERE / "built", help="folder of the executed notebooks")
    args = parser.parse_args(arguments)
    chosen = [n for n in SOURCES if not args.names or n.startswith(tuple(args.names))]
    if not chosen:
        parser.error(f"no notebook begins with {' or '.join(args.names)}; there are: {', '.join(SOURCES)}")
    wrong = 0
    for name in chosen:
        start = time.perf_counter()
        try:
            notebook = execute(SOURCES[name])
            found = differences(notebook, execute(SOURCES[name])) if args.check else []
        except nbclient.exceptions.CellExecutionError as e:
            print(f"{name}: {e}", file=sys.stderr)
            return 1
        wrong += bool(found)
        if not args.check:
            args.out.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, args.out / f"{name}.ipynb")
        if missing(notebook):
            print(f"{name}: ends early: {missing(notebook)}")
        said = f"differs in {', '.join(found)}" if found else "the same twice" if args.check else "built"
        print(f"{name}: {said}, {time.perf_counter() - start:.0f} s", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
