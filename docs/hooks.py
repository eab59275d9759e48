"""What MkDocs needs to be told: pages made of other files of the repository, and what is checked in the built site.

The front page is README. A file that a page links to outside docs/ becomes part of the site. The reference is one page
a room of the package, and the flags of every program.
"""

import ast
import importlib
import posixpath
import re
import sys
from pathlib import Path

import links
import notebook_pages
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = "prepare train evaluate features probe predict generate look report describe plan export".split()
LAUNCHERS = "local slurm tpu_pod gke sweep".split()
# Rooms of the package in the order in which data walk through them; the first are single modules.
GROUND = "library stepping errors trees operations".split()
ROOMS = "data models tasks training generation evaluation pretrained classical vis planning kernels".split()
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_config(config):
    """Adds the notebooks and the reference to the navigation."""
    sys.path.insert(0, str(ROOT))  # here, as MkDocs takes back what a hook changes while it is loaded
    reference = ["api/index.md", {"programs": "api/programs.md"}, *({room: f"api/{room}.md"} for room in ROOMS)]
    scripts = [f"notebooks/{source.stem}.md" for source in notebook_pages.sources()]
    made = {"Lecture": ["notebooks.md", *scripts], "API": reference}
    config.nav = [{title: made.get(title, below) for title, below in entry.items()} for entry in config.nav]
    return config


def on_files(files, config):
    """Adds the pages that are made, and the files outside docs/ that pages link to."""
    made = {"index.md": _moved((ROOT / "README.md").read_text(), "README.md", "index.md")}
    made |= {f"api/{room}.md": _reference(room) for room in ROOMS}
    made |= {"api/index.md": _door(), "api/programs.md": _programs()}
    for source in notebook_pages.sources():
        made[f"notebooks/{source.stem}.md"], pictures = notebook_pages.page(source)
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    for path in sorted(_outside()):
        uri = _place(path)
        if path.suffix == ".md":
            text = path.read_text()
            title = "" if text.startswith("# ") else f"# {path.stem.replace('_', ' ').capitalize()}\n\n"
            text = _moved(title + text, str(path.relative_to(ROOT)), uri)
            files.append(File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads links of the pages in docs/ that leave it to where the site has these files."""
    uri = page.file.src_uri
    return markdown if page.file.generated_by else _moved(markdown, f"docs/{uri}", uri)


def on_post_build(config):
    """Refuses a site with a dead link, or with anything loaded from another host."""
    (Path(config.site_dir) / "404.html").unlink(missing_ok=True)  # its links are those of a server's root
    if wrong := links.wrong(Path(config.site_dir)):
        raise PluginError("\n".join(["the site has faults:", *wrong]))


def _place(path):
    """Returns where the site has a file of the repository."""
    inside = path.relative_to(ROOT).as_posix()
    if path in notebook_pages.sources():
        return f"notebooks/{path.stem}.md"
    return inside.removeprefix("docs/") if inside != "README.md" else "index.md"


def _moved(text, old, new):
    """Returns the Markdown of a repository's file with its links as they are from its place in the site."""

    def link(match):
        opening, to, anchor, closing = match.groups()
        target = (ROOT / old).parent / to
        if re.match(r"\w+:", to) or not target.exists() or target.is_dir():
            return match[0]
        place = posixpath.relpath(_place(target.resolve()), posixpath.dirname(new) or ".")
        return f"{opening}{place}{anchor or ''}{closing}"

    return _LINK.sub(link, text)


def _outside():
    """Returns the files outside docs/ that README and the pages link to, and those that these link to."""
    found, pages = set(), [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    while pages:
        page = pages.pop()
        for _, to, _, _ in _LINK.findall(page.read_text()):
            path = (page.parent / to).resolve()
            inside = path.is_file() and path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs")
            if inside and path not in found and path not in (ROOT / "README.md", *notebook_pages.sources()):
                found.add(path)
                pages += [path] if path.suffix == ".md" else []
    return found


def _door():
    """Returns the page of the door, and of what all rooms use."""
    text = (
        "# Reference\n\nMade of the docstrings; every example in them is run by the tests. Shapes are in the names of "
        "axes: `b` images, `h w` rows and columns, `c` channels, `n` tokens, `d` width, `k` classes or heads. "
        "[The programs](programs.md) have their flags on a page of their own.\n\n"
    )
    return text + "\n\n".join(f"::: recvis_jax.{name}" for name in GROUND)


def _reference(room):
    """Returns the page of a room: its table of contents, then its modules in the order of their names."""
    folder = ROOT / "recvis_jax" / room
    modules = sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
    tree = ast.parse((folder / "__init__.py").read_text())
    own = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    members = (
        f"    options:\n      members: {[name for name in own if not name.startswith('_')]}"  # and no imported ones
    )
    blocks = [f"::: recvis_jax.{room}\n{members}", *(f"::: recvis_jax.{room}.{name}" for name in modules)]
    return f"# {room.capitalize()}\n\n" + "\n\n".join(blocks)


def _programs():
    """Returns the page of all programs and launchers: what each says of itself, and its flags."""
    text = "# Flags of the programs\n\nAs `--help` prints them. Flags are written `--name=value`.\n"
    for module in (*(f"recvis_jax.{p}" for p in PROGRAMS), *(f"launch.{p}" for p in LAUNCHERS)):
        said = importlib.import_module(module).__doc__ or ""
        said = re.sub(r"^ {2,}(?=\S)", "    ", said, flags=re.MULTILINE)
        rows = "\n".join(
            f"| `--{name}` | {f'`{default}`' if default else ''} | {' '.join(what.split())} |"
            for name, default, what in flags_of(module)
        )
        text += f"\n## {module}\n\n{said}\n\n| flag | default | |\n|---|---|---|\n{rows}\n"
    return text


def flags_of(module):
    """Returns (name, default, help) of the flags that a program defines, in their order.

    Example:
      >>> [name for name, _, _ in flags_of("recvis_jax.report")][:2]
      ['out', 'checkpoint']
    """
    from absl import flags

    program = importlib.import_module(module)  # and with it absl's own flags
    before = set(flags.FLAGS)
    program.define_flags()
    new = [name for name in flags.FLAGS if name not in before]
    found = [(name, flags.FLAGS[name].default_unparsed, flags.FLAGS[name].help) for name in new]
    for name in new:
        delattr(flags.FLAGS, name)
    return found
