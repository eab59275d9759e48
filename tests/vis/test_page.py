"""Pages are safe with hostile names, small, and the same every time; and a browser has nothing to say against them."""

import html.parser
import json
import math
import time

import browser
import numpy as np
import pytest

from recvis_jax.vis import chart, page, run_page

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a\u202eb",
    "x" * 5000,
    "&amp;",
    "\x1b[2J",
    "",
]


def content(name="run", classes=10, records=200, side=28, seed=0, names=None, config=None):
    """A page's content, all made up by a seed."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(records):
        step = 10 * (i + 1)
        numbers = {"loss": 3 / (1 + 0.01 * i) + rng.uniform(0, 0.1), "accuracy": 1 - 0.9 / (1 + 0.01 * i)}
        rows.append({"step": step, "split": "train", **numbers, "learning_rate": 0.1, "grad_norm": math.nan})
        if i % 5 == 0:
            rows.append({"step": step, "split": "val", **numbers, "top_5": 0.9})
    images = rng.integers(0, 256, (3, side, side, 3), np.uint8)
    wrong = [run_page.Prediction(image, i, 0, i % 2, 0.2, 0.7) for i, image in enumerate([*images] * 4)]
    return run_page.Content(
        name=name,
        facts=[("model", "mlp"), ("validation accuracy", "90 %")],
        numbers=[("", "validation"), ("loss", "0.5")],
        findings=[("problem", "The model overfits.", "Numbers.", "Advice.")],
        notes=["A note."],
        records=rows,
        classes=names or [f"class number {i}" for i in range(classes)],
        confusion=rng.integers(0, 5, (classes, classes)) + np.diag(rng.integers(20, 50, classes)),
        confused="100 validation examples",
        train_counts=np.full(classes, 7),
        groups=[("Worst", "About.", wrong), ("Random", "About.", [])],
        images=[("Filters", "About.", list(images), 90)],
        cost=[("time", "3 s")],
        origin=[("CPU", "one")],
        command="python -m recvis_jax.train",
        config=config or {"optim": {"lr": 0.1 + seed}, "seed": 0},
    )


def parsed(text):
    """The tags of a page with their attributes, as browsers find them."""
    out = []
    reader = html.parser.HTMLParser()
    reader.handle_starttag = lambda tag, given: out.append((tag, dict(given)))
    reader.feed(text)
    return out


def test_hostile_texts_are_text():
    bad = content(HOSTILE[0], len(HOSTILE), names=HOSTILE, config={HOSTILE[1]: {HOSTILE[0]: HOSTILE[1]}})
    fields = {f: HOSTILE[0] for f in ("confused", "command")}
    bad = bad._replace(facts=[(h, h) for h in HOSTILE], findings=[("problem", *HOSTILE[:3])], notes=HOSTILE, **fields)
    for found in (run_page.document([bad]), run_page.document([bad, bad._replace(name="other", config={})])):
        tags = parsed(found)
        assert not {tag for tag, _ in tags} & {"script", "iframe", "object", "link", "form", "a", "base"}
        names = {name for _, given in tags for name in given}
        assert not [n for n in names if n.startswith("on")], "no tag has a handler"
        assert {given["src"][:5] for _, given in tags if "src" in given} == {"data:"}
        assert "\u202e" not in found and "\x1b" not in found and "://" not in found and "url(" not in found


def test_the_same_every_time():
    assert run_page.document([content()]) == run_page.document([content()])
    assert run_page.document([content("a"), content("b", seed=1)]) == run_page.document(
        [content("a"), content("b", seed=1)]
    )


def test_configs_are_compared():
    found = run_page.document([content("a"), content("b", seed=1)])
    part = found[found.index("What differs") : found.index("Curves")]
    assert "optim.lr" in part and "0.1" in part and "1.1" in part and "seed" not in part


def test_a_long_run_of_many_classes_is_small_and_quick():
    rng = np.random.default_rng(0)
    long = content(classes=1000, records=90_000, side=400)
    noise = [
        (t, e, [p._replace(image=rng.integers(0, 256, (400, 400, 3), np.uint8)) for p in g]) for t, e, g in long.groups
    ]
    long = long._replace(groups=noise * 6)
    assert len(long.records) > 100_000
    began = time.process_time()
    found = run_page.document([long])
    assert time.process_time() - began < 30 and len(found.encode()) < run_page.LIMIT


def test_pictures_give_way_where_they_are_too_many(monkeypatch):
    full = run_page.document([content()])
    monkeypatch.setattr(run_page, "LIMIT", len(full.encode()) - 1000)
    less = run_page.document([content()])
    assert 0 < less.count("<img") < full.count("<img")


def test_peaks_are_not_thinned_away():
    x = np.arange(100_000)
    y = np.where(x == 54_321, 7.0, np.sin(x / 1000))
    kept_x, kept_y = chart.thinned(x, y)
    assert len(kept_x) <= 302 and kept_y.max() == 7 and (np.diff(kept_x) > 0).all()
    assert kept_x[0] == 0 and kept_x[-1] == 99_999


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [math.nan, 1.0, math.inf], [0.0, -1.0], [1e-300, 1e300]])
@pytest.mark.parametrize("log", [False, True])
def test_any_values_make_a_chart(values, log):
    line = chart.Line("l", np.arange(len(values)), np.array(values, float), 0, dots=True)
    found = chart.curves("t", [line], log=log)
    assert "nan" not in found and "inf" not in found
    assert bool(found) == any(math.isfinite(v) and (v > 0 or not log) for v in values)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (300, 20, 3), (8, 8, 4), (1, 500, 1)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_any_image_is_a_picture(shape, kind):
    image = (np.random.default_rng(0).uniform(0, 1, shape) * (255 if kind == np.uint8 else 1)).astype(kind)
    assert "base64," in page.picture(image)


@pytest.fixture(scope="module")
def chromium():
    name = browser.find()
    if name is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with browser.started(name) as found:
        yield found


@pytest.mark.every
@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(runs, dark, chromium, tmp_path):
    """No message on the console, no request, no horizontal scroll on a phone, and colours that can be read."""
    names = ["a class whose name goes on and on", "W" * 90, "<b>bold</b>", *map(str, range(37))]
    path = tmp_path / "report.html"
    pages = [content(f"run number {i}", 40 if i else 12, names=names[: 40 if i else 12], seed=i) for i in range(runs)]
    path.write_text(run_page.document(pages))
    chromium.console.clear(), chromium.requests.clear()
    for width in (390, 1100):
        chromium.show(path, width, dark=dark)
        chromium.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert chromium.ask("document.documentElement.scrollWidth") <= width
        assert chromium.ask("document.querySelectorAll('svg').length") >= 3
        assert chromium.ask("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    colour = chromium.ask("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert not chromium.console
    assert all(url.startswith(("file:", "data:")) for url in chromium.requests), json.dumps(chromium.requests)
