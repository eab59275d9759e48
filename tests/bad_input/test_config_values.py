"""Every wrong value that the signatures suggest is refused by name before anything is written."""

import config_values
import pytest

from recvis_jax import errors, fitting, train

SLICES = 12  # of which one is tried every time
PARTS = [pytest.param(i, marks=[pytest.mark.slow] if i else []) for i in range(SLICES)]


class Taken(Exception):
    """Nothing was refused before the first step."""


@pytest.mark.full
@pytest.mark.parametrize("part", PARTS)
def test_wrong_values(part, monkeypatch, tmp_path):
    def first_step(*args, **kwargs):
        raise Taken

    monkeypatch.setattr(fitting, "_rehearse", first_step)
    found = []
    for i, case in enumerate(config_values.cases()):
        if i % SLICES != part:
            continue
        try:
            errors.check_kwargs(train.train, case.sections, "config", given=("workdir", "config"))
            train.train(workdir=str(tmp_path / "run"), config=case.sections, **case.sections)
        except errors.BadRequest as e:
            text = str(e)
            if "\n" in text or len(text) > 2500 or not text.isprintable():
                found.append(f"{case.name}: not a line: {text[:200]!r}")
        except Taken:
            found.append(f"{case.name}: taken")
        except Exception as e:
            found.append(f"{case.name}: {type(e).__name__}: {e}")
    assert not found, "\n".join(found)
    assert not (tmp_path / "run").exists()


def test_the_base_is_taken(monkeypatch, tmp_path):
    def first_step(*args, **kwargs):
        raise Taken

    monkeypatch.setattr(fitting, "_rehearse", first_step)
    with pytest.raises(Taken):
        train.train(workdir=str(tmp_path / "run"), config=config_values.BASE, **config_values.BASE)
