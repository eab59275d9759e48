"""Pages in one file: HTML from a few functions, with all text escaped, no scripts, and nothing loaded from elsewhere.

Untrusted text (names of classes and files, configs) enters a page only through `text`. Colours follow the reader's
light or dark theme; nothing is wider than the window, because wide tables have their own scroll bar.
"""

import base64
import html
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8

from recvis_jax import errors

_SMALL = 64  # largest side of a picture that keeps all its pixels, as PNG
_SIDE = 96  # of larger ones
_LONGEST = 120  # characters of a name

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#5d6670;--line:#d5dae0;--soft:#f3f5f7;--a:#1f6fd0;
--b:#c2410c;
--bad:#b42318;--warn:#9a6700;--good:#1a7f37;--cell:31,111,208}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e3e7ec;--dim:#98a2ad;--line:#343b44;--soft:#1d2228;
--a:#6cb0ff;
--b:#ff9d5c;--bad:#ff8a80;--warn:#e3b341;--good:#56d364;--cell:88,166,255}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0 .6rem}h2{font-size:1.15rem;margin:1.8rem 0 .5rem}
h3{font-size:1rem;margin:1.1rem 0 .3rem}p{margin:.4rem 0}.dim{color:var(--dim)}small{color:var(--dim)}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.2rem .55rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;
overflow-wrap:normal}
th{font-weight:600}th,td{white-space:nowrap}.n{text-align:right}.w{white-space:normal;overflow-wrap:anywhere;min-width:9rem}
td:first-child{white-space:normal;min-width:7rem}
code,pre{font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--soft);padding:.6rem;margin:.4rem 0;white-space:pre-wrap;overflow-wrap:anywhere;border-radius:4px}
.finding{border-left:4px solid var(--line);background:var(--soft);padding:.5rem .8rem;margin:.5rem 0;
border-radius:0 4px 4px 0}
.finding b{display:block}.problem{border-color:var(--bad)}.caution{border-color:var(--warn)}
.fine{border-color:var(--good)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1rem}
figure{margin:0;min-width:0}figcaption{font-size:.85rem;color:var(--dim)}
svg{display:block;width:100%;height:auto}svg text{fill:var(--dim);font:11px system-ui,sans-serif}
.grid{stroke:var(--line);stroke-width:1}.line{fill:none;stroke-width:1.6;stroke-linejoin:round}
.s0{stroke:var(--a)}.s1{stroke:var(--b)}.dot.s0{fill:var(--a)}.dot.s1{fill:var(--b)}
.key{display:inline-block;width:1.4em;height:.25em;vertical-align:middle;margin-right:.3em}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.2rem,1fr));gap:.7rem .6rem}
.pictures figure{font-size:.78rem;line-height:1.35}.pictures img{width:100%;max-width:96px;height:auto;display:block;
margin-bottom:.2rem}
img{image-rendering:pixelated;max-width:100%}img.smooth{image-rendering:auto}
.matrix td,.matrix th{padding:.15rem .35rem;text-align:center;font-size:.8rem;border:1px solid var(--line)}
.matrix th.row{text-align:right;white-space:nowrap}.right{color:var(--good)}.wrong{color:var(--bad)}
.pair{display:inline-flex;gap:.4rem;margin:.3rem 1rem .3rem 0}.pair figure{width:6.5rem}
.tiles{display:flex;align-items:flex-start;flex-wrap:wrap;gap:.3rem}.tiles img{width:var(--side,48px);height:auto}
summary{cursor:pointer;margin:.4rem 0}
"""


def text(value: object, longest: int = _LONGEST) -> str:
    """Returns untrusted text as HTML: printable, shortened, escaped.

    Example:
      >>> text("<script>alert('x')</script>")
      '&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;'
    """
    return html.escape(errors.brief(value, longest), quote=True)


def document(title: str, body: Iterable[str]) -> str:
    """Returns a whole page.

    Args:
      title: of the window, any text.
      body: HTML.
    """
    # If anything foreign gets in, browsers neither run nor load it.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title><style>{STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()) -> str:
    """Returns a table, with its own scroll bar if it is wider than the window.

    Args:
      head: titles of the columns; all empty for none.
      rows: cells, any texts; a cell of type `Html` is not escaped.
      numbers: columns of numbers, which are right-aligned.
    """
    right = set(numbers)

    def row(cells: Sequence[object], tag: str) -> str:
        kinds = (' class="n"' if i in right else ' class="w"' if len(str(c)) > 40 else "" for i, c in enumerate(cells))
        inner = (c if isinstance(c, Html) else text(c) for c in cells)
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, inner, strict=True)) + "</tr>"

    top = row(head, "th") if any(head) else ""
    return f'<div class="scroll"><table>{top}{"".join(row(r, "td") for r in rows)}</table></div>'


class Html(str):
    """Text that is HTML already."""


def folded(title: str, inner: str) -> str:
    """Returns a part of a page that opens on a click."""
    return f"<details><summary>{text(title)}</summary>{inner}</details>"


def finding(level: str, title: str, why: str, advice: str) -> str:
    """Returns a box with a finding; `level` is "problem", "caution" or "fine"."""
    lines = [f"<b>{text(title, 400)}</b>", text(why, 900)]
    lines += [f"<br><small>{text(advice, 900)}</small>"] if advice else []
    return f'<div class="finding {level}">{"".join(lines)}</div>'


def picture(image: np.ndarray, side: int = _SIDE) -> str:
    """Returns an image as HTML that contains its data.

    Args:
      image: (h w c), uint8 or float in [0, 1], of 1 or 3 channels, or (h w).
      side: pixels of its longer side; images are shrunk, never enlarged.
    """
    import cv2

    shown = image if image.ndim == 3 else image[..., None]
    if shown.dtype != np.uint8:
        shown = (np.nan_to_num(shown.astype(np.float32)).clip(0, 1) * 255).round().astype(np.uint8)
    if shown.shape[-1] not in (1, 3):
        shown = shown.mean(-1, keepdims=True).astype(np.uint8)
    h, w = shown.shape[:2]
    if max(h, w) > side:
        size = (max(1, round(w * side / max(h, w))), max(1, round(h * side / max(h, w))))
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    small = max(shown.shape[:2]) <= _SMALL
    data = encoded(shown, ".png" if small else ".jpg")
    kind, style = ("png", "") if small else ("jpeg", ' class="smooth"')
    h, w = shown.shape[:2]
    return f'<img{style} alt="" width="{w}" height="{h}" src="data:image/{kind};base64,{data}">'


def encoded(image: UInt8[np.ndarray, "h w c"], kind: str) -> str:
    """Returns an image file in base64; `kind` is ".png" or ".jpg"."""
    import cv2

    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[-1] == 3 else image
    options = [cv2.IMWRITE_JPEG_QUALITY, 80] if kind == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 9]
    return base64.b64encode(cv2.imencode(kind, stored, options)[1].tobytes()).decode()


def pictures(items: Iterable[tuple[np.ndarray, str]], side: int = _SIDE) -> str:
    """Returns pictures with a caption each.

    Args:
      items: (image, caption in HTML).
      side: see `picture`.
    """
    figures = (f"<figure>{picture(image, side)}{caption}</figure>" for image, caption in items)
    return f'<div class="pictures">{"".join(figures)}</div>'


def percent(share: float) -> str:
    """Returns a fraction as percent.

    Example:
      >>> percent(0.1234)
      '12.3 %'
    """
    return f"{100 * share:.1f} %"
