"""Checks a built site: every link leads somewhere, and nothing is loaded from another host."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself.
_LOADS = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src", "audio": "src"}


class _Page(HTMLParser):
    """The names of a page that links may lead to, its links, and what it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Keeps what one element refers to."""
        found = dict(attrs)
        self.names |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "link" and found.get("href") and found.get("rel") not in ("prev", "next", "canonical"):
            self.loads.append(found["href"])
        if found.get(_LOADS.get(tag, "")):
            self.loads.append(found[_LOADS[tag]])


def wrong(site: Path) -> list[str]:
    """Returns a line for each dead link, and for each thing that a page or a style sheet loads from elsewhere.

    Args:
      site: folder of the built site.

    Example:
      >>> page = '<p id="x"><a href="a.html#x"></a><a href="b.html"></a><img src="//host/p.png">'
      >>> _ = Path("a.html").write_text(page)
      >>> wrong(Path())
      ['a.html loads //host/p.png', 'a.html links to b.html, which is not there']
    """
    pages = {path: _Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name} loads {to}" for to in page.loads if _elsewhere(to)]
        for to in dict.fromkeys([*page.links, *page.loads]):
            if _elsewhere(to) or re.match(r"(mailto|data|javascript):", to):
                continue
            parts = urlsplit(to)
            target = (path.parent / unquote(parts.path)) if parts.path else path
            target = (target / "index.html" if target.is_dir() else target).resolve()
            if not target.exists():
                found.append(f"{name} links to {to}, which is not there")
            elif parts.fragment:
                there = pages.get(target) or pages.get(site / target.relative_to(site.resolve()))
                if there and unquote(parts.fragment) not in there.names and not parts.fragment.startswith("__"):
                    found.append(f"{name} links to {to}, a place that the page does not have")
    for path in sorted(site.rglob("*.css")):
        found += [f"{path.relative_to(site)} loads {to}" for to in _URL.findall(path.read_text()) if _elsewhere(to)]
    return found


_URL = re.compile(r"""url\(\s*["']?([^"')]+)""")


def _elsewhere(to: str) -> bool:
    return to.startswith("//") or bool(re.match(r"(https?|ftp):", to))
