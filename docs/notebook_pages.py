"""Pages of the site that show the notebooks: text and code, and what they printed and drew where they are built."""

import base64
import json
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def sources() -> list[Path]:
    """Returns the scripts of the notebooks, in the order of the lecture."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def cells(source: Path) -> list[dict]:
    """Returns the cells of a notebook, executed if it is built: {"cell_type", "source", "outputs"}.

    Args:
      source: the percent script. `make notebooks` builds it; a notebook older than its script counts as not built.
    """
    built = FOLDER / "built" / f"{source.stem}.ipynb"
    if built.exists() and built.stat().st_mtime >= source.stat().st_mtime:
        found = json.loads(built.read_text())["cells"]
        return [{**cell, "source": "".join(cell["source"])} for cell in found]
    return parsed(source.read_text())


def parsed(text: str) -> list[dict]:
    """Returns the cells of a percent script, without outputs.

    Example:
      >>> [(cell["cell_type"], cell["source"]) for cell in parsed("# %% [markdown]\\n# # Title\\n\\n# %%\\nx = 1\\n")]
      [('markdown', '# Title'), ('code', 'x = 1')]
    """
    out = []
    for kind, body in re.findall(r"^# %%([^\n]*)\n(.*?)(?=^# %%|\Z)", text, re.DOTALL | re.MULTILINE):
        written = "markdown" in kind
        lines = [re.sub(r"^# ?", "", line) if written else line for line in body.strip().splitlines()]
        out.append({"cell_type": "markdown" if written else "code", "source": "\n".join(lines), "outputs": []})
    return out


_LINK = re.compile(r"\[([^\]]*)\]\((\d\d_\w+)\.(?:py|ipynb)\)")


def _of_page(link: re.Match) -> str:
    """Returns a link to another notebook as one to its page; a part that is not written yet is named alone."""
    there = link[2] in {source.stem for source in sources()}
    return f"[{link[1]}]({link[2]}.md)" if there else link[1]


def page(source: Path) -> tuple[str, dict[str, bytes]]:
    """Returns the Markdown of a notebook's page, and its pictures by their names."""
    text, pictures = [], {}
    for cell in cells(source):
        if cell["cell_type"] == "markdown":
            text.append(_LINK.sub(_of_page, cell["source"]))
            continue
        text.append(f"```python\n{cell['source']}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{source.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                text.append(f"![figure {len(pictures)}]({name})")
            elif said := "".join(output.get("text", data.get("text/plain", ()))).rstrip():
                text.append(f"```text\n{said}\n```")
    return "\n\n".join(text) + "\n", pictures
