"""Texts as data sets: read from catalogues, modules and files, without copies, whole documents held out."""

import gettext
import io
import struct
import zlib

import numpy as np
import pytest

from recvis_jax.data import builders, catalogues, opened, sword, text_set
from recvis_jax.errors import BadRequest

PO = """msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

#: a.c:1
msgctxt "menu"
msgid "~Save "
"all"
msgstr "Alles ~speichern"

#, fuzzy
msgid "guess"
msgstr "raten"
msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"

msgid "untranslated"
msgstr ""
#~ msgid "old"
#~ msgstr "alt"
"""
EXPECTED = [("Save all", "Alles speichern"), ("%d file", "%d Datei"), ("%d files", "%d Dateien")]


def mo(messages, order="<"):
    """A compiled catalogue, as msgfmt writes it."""
    rows = sorted((k.encode(), v.encode()) for k, v in messages.items())
    head, body = 28 + 16 * len(rows), b""
    tables = [[], []]
    for side in (0, 1):
        for row in rows:
            tables[side] += [len(row[side]), head + len(body)]
            body += row[side] + b"\0"
    n = 2 * len(rows)
    return (
        struct.pack(
            f"{order}7I{2 * n}I", 0x950412DE, 0, len(rows), 28, 28 + 8 * len(rows), 0, 0, *tables[0], *tables[1]
        )
        + body
    )


def test_catalogues_of_both_kinds(tmp_path):
    (tmp_path / "a.po").write_text(PO)
    assert [(p.source, p.target) for p in catalogues.read(tmp_path / "a.po", "a")] == EXPECTED
    messages = {"": "Content-Type: text/plain; charset=UTF-8\n", "menu\x04~Save all": "Alles ~speichern",
                "%d file\0%d files": "%d Datei\0%d Dateien", "none": ""}  # fmt: skip
    for order in "<>":
        data = mo(messages, order)
        assert gettext.GNUTranslations(io.BytesIO(data)).pgettext("menu", "~Save all") == "Alles ~speichern"
        (tmp_path / "b.mo").write_bytes(data)
        assert sorted((p.source, p.target) for p in catalogues.read(tmp_path / "b.mo", "b")) == sorted(EXPECTED)
    for damaged in (data[:40], data[:-30], b"abcd" + data[4:], data.replace(b"Alles", b"All\xffs")):
        (tmp_path / "b.mo").write_bytes(damaged)
        with pytest.raises(BadRequest, match=r"b\.mo"):
            list(catalogues.read(tmp_path / "b.mo", "b"))


def module(folder, verses):
    """A SWORD module whose testaments have an introduction and one book."""
    folder.mkdir()
    for testament in ("ot", "nt"):
        books = [b"about", "".join(verses).encode()]
        packed = [zlib.compress(b) for b in books]
        starts = np.cumsum([0, *map(len, packed)])
        (folder / f"{testament}.bzz").write_bytes(b"".join(packed))
        index = [struct.pack("<3I", starts[i], len(packed[i]), len(books[i])) for i in range(2)]
        (folder / f"{testament}.bzs").write_bytes(b"".join(index))
        at, rows = 0, [struct.pack("<IIH", 0, 0, 5), struct.pack("<IIH", 0, 0, 0)]
        for verse in verses:
            rows.append(struct.pack("<IIH", 1, at, len(verse.encode())))
            at += len(verse.encode())
        (folder / f"{testament}.bzv").write_bytes(b"".join(rows))


def test_modules_of_one_versification(tmp_path):
    module(tmp_path / "a", ["<title>One</title>In the <w>beginning</w>", "second &amp; third<note>x</note>", ""])
    module(tmp_path / "b", ["En el principio", "segundo y tercero", "más"])
    found = sword.pairs(tmp_path / "a", tmp_path / "b")
    assert [(p.source, p.target, p.group) for p in found] == [
        ("In the beginning", "En el principio", "Gen"), ("second & third", "segundo y tercero", "Gen"),
        ("In the beginning", "En el principio", "Matt"), ("second & third", "segundo y tercero", "Matt"),
    ]  # fmt: skip
    module(tmp_path / "c", ["solo"])
    with pytest.raises(BadRequest, match="do not have the same versification"):
        sword.pairs(tmp_path / "a", tmp_path / "c")
    (tmp_path / "b/ot.bzz").write_bytes(b"x" * 60)
    with pytest.raises(BadRequest, match="block 0 cannot be decompressed"):
        sword.pairs(tmp_path / "a", tmp_path / "b")


def tsv(path, documents=20, rows=10):
    lines = [f"text {d} number {i}\tText {d} Nummer {i}\tdocument{d}" for d in range(documents) for i in range(rows)]
    path.write_text("\n".join([*lines, "Text 1, number 1!\tText 1 Nummer 1\tdocument1"]) + "\n")
    return path


def test_whole_documents_are_held_out_without_copies(tmp_path):
    said = []
    made = builders.prepare(
        "parallel", tmp_path / "data", tsv(tmp_path / "mine.tsv"), folder_name="mine", say=said.append
    )
    found = builders.summary(made)
    assert found.class_names == () and set(found.splits) == {"train", "validation", "test"}
    assert found.splits["test"] >= 10 and sum(found.splits.values()) == 200
    how = dict(name="mine", data_dir=str(tmp_path / "data"), train="train", val="validation", text=dict(tokens=300))
    data = opened.open_data(**how)
    numbers = {}
    for split in ("train", "val", "test"):
        source = data.named(split)
        vocabulary = data.info.vocabulary
        texts = [vocabulary.decode(e["source"]) for e in source.read(range(source.length))]
        numbers[split] = {t.split()[1] for t in texts}
        assert all(vocabulary.decode(e["target"]).startswith("Text") for e in source.read([0, 1]))
    assert not numbers["train"] & numbers["test"] and not numbers["train"] & numbers["val"]
    again = builders.prepare("parallel", tmp_path / "data", tmp_path / "mine.tsv", folder_name="mine", say=said.append)
    assert again == made and "already prepared" in said[-1]
    tsv(tmp_path / "mine.tsv", rows=11)
    with pytest.raises(BadRequest, match="holds different texts of the same name"):
        builders.prepare("parallel", tmp_path / "data", tmp_path / "mine.tsv", folder_name="mine", say=said.append)


def test_given_splits_lose_what_is_in_training(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    files = {"train.en": "one\ntwo\none\n", "train.de": "eins\nzwei\neins\n", "val.en": "three\r\n",
             "val.de": "drei\r\n", "test.en": "Two.\nfour\n", "test.de": "Zwei.\nvier\n"}  # fmt: skip
    for name, lines in files.items():
        (folder / name).write_text(lines)
    said = []
    made = builders.prepare("parallel", tmp_path / "data", folder, folder_name="few", say=said.append)
    assert builders.summary(made).splits == {"train": 2, "validation": 1, "test": 1}
    assert "test: left out 0 copies, and 1 whose source is in training" in said
    with pytest.raises(BadRequest, match=r"test\.de, line 1: this text of test is also in training"):
        builders.prepare("parallel", tmp_path / "data", folder, folder_name="x", on_duplicate="fail", say=said.append)


BAD = {
    "an empty line": (
        {"train.de": "a\n\nc\n"},
        r"1 of 3 pairs cannot be used: .*train\.de, line 2: the source is empty",
    ),
    "a long line": ({"train.de": f"a\n{'b' * 6000}\nc\n"}, "line 2: the source has 6,000 characters, more than 5,000"),
    "an encoding": ({"train.de": b"a\nb\xe4r\nc\n"}, r"train\.de, line 2 is not UTF-8: byte 0xe4\. iconv"),
    "a line too many": ({"train.de": "a\nb\nc\nd\n"}, "has 4 lines, .* 3; corresponding"),
    "one file": ({"train.en": None}, "it takes two files, as train.de and train.en"),
    "nothing": ({"train.en": None, "train.de": None}, "it has nothing of the kind"),
    "columns": ({"train.en": None, "train.de": None, "train.tsv": "a\tb\nonly\n"}, "line 2 has 1 columns"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_texts_are_one_line(what, tmp_path):
    files, words = BAD[what]
    for name, lines in ({"train.de": "a\nb\nc\n", "train.en": "x\ny\nz\n"} | files).items():
        if lines is not None:
            (tmp_path / name).write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(BadRequest, match=words) as e:
        builders.prepare("parallel", tmp_path / "data", tmp_path, folder_name="bad", say=lambda line: None)
    assert "\n" not in str(e.value)


def test_what_is_wrong_can_be_left_out(tmp_path):
    tsv(tmp_path / "a.tsv")
    (tmp_path / "a.tsv").write_text((tmp_path / "a.tsv").read_text() + "\tleer\nvoll\t\n")
    said = []
    made = builders.prepare(
        "parallel", tmp_path / "data", tmp_path / "a.tsv", folder_name="skipped", on_error="skip", say=said.append
    )
    assert sum(builders.summary(made).splits.values()) == 200
    assert any(line.startswith("left out 2 of 203 pairs") for line in said)


TEXT = dict(name="libreoffice_de", mock=30, train="train", val="validation")


def test_long_texts_are_dropped_cut_or_refused():
    kept = {way: opened.open_data(**TEXT, text=dict(tokens=259, most=20, too_long=way)) for way in ("drop", "cut")}
    assert kept["drop"].train.length < kept["cut"].train.length == kept["drop"].val.length == 30
    assert "more than 20 tokens: left out" in kept["drop"].train.notes[0] and "cut" in kept["drop"].val.notes[0]
    lengths = [len(e["target"]) for e in kept["cut"].train.read(range(30))]
    assert max(lengths) == 20 and all(e["target"][-1] == 2 for e in kept["cut"].train.read(range(30)))
    with pytest.raises(BadRequest, match=r"pair .* tokens, more than data.text.most=20"):
        opened.open_data(**TEXT, text=dict(tokens=259, most=20, too_long="fail"))


def test_the_vocabulary_is_of_training_alone_and_part_of_the_digest():
    one, other = (opened.open_data(**TEXT, text=dict(tokens=n)) for n in (280, 281))
    half = opened.open_data(**{**TEXT, "train": "train[:50%]"}, text=dict(tokens=280))
    assert one.info.splits["val"].digest != other.info.splits["val"].digest
    assert half.info.vocabulary != one.info.vocabulary
    with pytest.raises(BadRequest, match="of_run='/nowhere' is not the folder of a run"):
        opened.open_data(**TEXT, text=dict(of_run="/nowhere"))
    with pytest.raises(BadRequest, match=r"unknown key config\.data\.text\.token\b"):
        opened.open_data(**TEXT, text=dict(token=300))


def test_keys():
    assert text_set.key("Öffnen …") == text_set.key("öffnen") and text_set.key("%1") != text_set.key("…")
