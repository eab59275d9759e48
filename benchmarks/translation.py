"""What a trained translator is worth: its BLEU and chrF on held-out documents, beside what needs no learning.

  python benchmarks/translation.py --workdir=runs/translate [--split=test] [--without=runs/uniform]

copy: the source itself. memory: the translation of the most similar training source, by the words that both have
(weighted by how rare they are), as a translator's memory finds it. greedy and beam: of the run; --without is a run of
the same net without attention (--config.model.attention=uniform).
"""

import math
import time
from collections import Counter, defaultdict
from pathlib import Path

from absl import app, flags

from recvis_jax import trained, translating
from recvis_jax.data import texts
from recvis_jax.evaluation import translation

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Run of a translator.", required=True)
flags.DEFINE_string("without", None, "Run of the same net without attention.")
flags.DEFINE_string("checkpoint", None, "Of the runs; see evaluate.")
flags.DEFINE_string("split", "test", "train, val, test or a split expression.")
flags.DEFINE_string("data_dir", None, "Where the data are, if not where the run had them.")


def pairs(config: dict, split: str) -> list[tuple[str, str]]:
    """The texts of a split, as the run's config names it."""
    data = config["data"]
    source = texts.open_split(
        data["name"],
        data.get(split) or split,
        texts.Texts(**data["text"]),
        data_dir=FLAGS.data_dir or data.get("data_dir"),
    )
    return [(e["source"], e["target"]) for e in source.read(range(source.length))]


def memory(known: list[tuple[str, str]], sources: list[str]) -> list[str]:
    """Translations of the most similar known sources: the cosine of words weighted by tf-idf."""
    counts = [Counter(w.lower() for w in translation.words(s)) for s, _ in known]
    often = Counter(w for c in counts for w in c)
    rare = {w: math.log(1 + len(known) / n) for w, n in often.items()}
    norms = [math.sqrt(sum((n * rare[w]) ** 2 for w, n in c.items())) for c in counts]
    where = defaultdict(list)
    for i, c in enumerate(counts):
        for w, n in c.items():
            where[w].append((i, n * rare[w] / norms[i]))
    out = []
    for source in sources:
        scores: dict[int, float] = defaultdict(float)
        for w, n in Counter(w.lower() for w in translation.words(source)).items():
            for i, weight in where.get(w, ()):
                scores[i] += n * rare[w] * weight
        out.append(known[max(scores, key=lambda i: (scores[i], -i))][1] if scores else "")
    return out


def main(_) -> None:
    folder = Path(FLAGS.workdir).expanduser().absolute()
    config = trained.read_config(folder)
    train, held = pairs(config, "train"), pairs(config, FLAGS.split)
    sources, references = [s for s, _ in held], [t for _, t in held]
    print(f"{len(held):,} texts of {FLAGS.split}, {len(train):,} of training; {translation.SIGNATURES['bleu']}")
    print("| way | BLEU | chrF | seconds |\n|---|---|---|---|")

    def show(name: str, found: list[str], seconds: float) -> None:
        bleu, chrf = translation.bleu(found, references), translation.chrf(found, references)
        print(f"| {name} | {bleu:.2f} | {chrf:.2f} | {seconds:.0f} |", flush=True)

    show("copy", sources, 0)
    began = time.monotonic()
    show("memory", memory(train, sources), time.monotonic() - began)
    for name, where in (("", folder), ("without attention, ", FLAGS.without)):
        if where is None:
            continue
        where = Path(where).expanduser().absolute()
        model = trained.of_run(where, trained.read_config(where), FLAGS.checkpoint)
        for beams in (1, 4):
            began = time.monotonic()
            found = translating.translate(model.run, model.params, model.model_state, sources, beams=beams, cut=True)
            show(f"{name}{'greedy' if beams == 1 else 'beam of 4'}", found, time.monotonic() - began)


if __name__ == "__main__":
    app.run(main)
