"""Metrics as a user reads them: which axis is the truth, and which column is which class."""

import numpy as np

from recvis_jax.evaluation import tables


def test_a_matrix_of_short_names_is_headed_by_them():
    text = tables.show("confusion_matrix", np.array([[5, 1], [0, 12]]), ("cat", "dög"))
    assert text.splitlines() == [
        "  confusion_matrix (rows: true class; columns: predicted class):",
        "         cat dög",
        "    cat    5   1",
        "    dög    0  12",
    ]


def test_columns_of_long_names_have_numbers_that_the_rows_explain():
    names = ("T-shirt/top", "a name that is too long to be shown whole", "x\x1b[2J\n", *"3456789", "ten")
    counts = np.arange(121).reshape(11, 11)
    _, head, *rows = tables.show("confusion_matrix", counts, names).splitlines()
    assert head.split() == [str(i) for i in range(11)] and len(rows) == 11
    for i, row in enumerate(rows):
        assert row.split()[0] == str(i) and [int(n) for n in row.split()[-11:]] == counts[i].tolist()
    ends = [i for i, c in enumerate(head) if c != " " and (head[i + 1 :] or " ")[0] == " "]
    assert all(row[e].isdigit() and (row[e + 1 :] or " ")[0] == " " for row in rows for e in ends), "below each other"
    assert "x\\x1b[2J\\n" in rows[2] and "a name that is too long…" in rows[1]


def test_of_many_classes_the_most_frequent_confusions_are_shown():
    counts = np.eye(100, dtype=int) * 50
    counts[3, 7], counts[8, 2] = 9, 4
    text = tables.show("confusion_matrix", counts, [f"c{i}" for i in range(100)])
    assert text.splitlines()[1:] == ["    c3  predicted  c7: 9", "    c8  predicted  c2: 4"]
    assert "true class first" in text.splitlines()[0]
    assert tables.show("m", np.eye(40, dtype=int)).count("\n") == 0


def test_absent_classes_are_said():
    values = {"loss": np.float32("nan"), "per_class_accuracy": np.array([0.5, np.nan])}
    assert tables.show("a", values["per_class_accuracy"], ("x",)).splitlines()[1:] == [
        "    x  0.5000",
        "    1  no examples",
    ]
    assert tables.show("loss", values["loss"]) == "  loss: nan"
