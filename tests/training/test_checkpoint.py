"""Checkpoints: which are kept, that a damaged one is never taken for whole, and what a full disk costs."""

import contextlib
import json
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.pretrained import files
from recvis_jax.training import checkpoint, sharding
from recvis_jax.training.state import State


def make(step, size=64):
    """A state whose every number tells its step, and which no compression makes small."""
    value = step + jax.random.uniform(jax.random.key(step), (size, size))
    return State(
        step=jnp.int32(step),
        params={"head": {"kernel": value, "bias": value[0]}},
        model_state={"batch_stats": {"norm": {"mean": -value[1]}}},
        opt_state=(jnp.int32(step), {"mu": value.astype(jnp.bfloat16)}),
        key=jnp.array([step, 7], jnp.uint32),
    )


def equal(a, b):
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.fixture
def opened(tmp_path):
    """Opens checkpoints of a folder anew, as another process would."""
    keepers = []

    def open_again(folder=tmp_path, size=64, **kw):
        for keeper in keepers:
            with contextlib.suppress(errors.Failure):  # of a full disk
                keeper.close()
        template = jax.eval_shape(lambda: make(0, size))
        keepers[:] = [checkpoint.Checkpointer(folder, sharding.laid_out(template, sharding.make_mesh()), **kw)]
        return keepers[0]

    yield open_again
    for keeper in keepers:
        keeper.close()


def fill(keeper, steps, best=()):
    for step in steps:
        keeper.save(make(step), {"data": {"next_batch": step}, "loop": {"seconds": 0.1 * step}}, best=step in best)
    keeper.wait()


def test_two_newest_and_the_best_are_kept(opened, tmp_path):
    fill(opened(), (10, 20, 30, 40), best=(10, 20))
    keeper = opened()
    there = {p.name: sorted(int(s.name) for s in p.iterdir()) for p in (tmp_path / "checkpoints").iterdir()}
    assert there == {"last": [30, 40], "best": [20]} and keeper.best_step() == 20
    for which, step in {"last": 40, "best": 20, "20": 20, 30: 30}.items():
        found = keeper.restore(which)
        assert found.step == step and equal(found.state, make(step))
        assert found.meta["data"] == {"next_batch": step} and found.meta["loop"] == {"seconds": 0.1 * step}
    assert keeper.restore_newest().step == 40


def test_what_is_not_there_is_said(opened, tmp_path):
    keeper = opened()
    assert keeper.restore_newest() is None and keeper.best_step() is None
    with pytest.raises(errors.BadRequest, match=r"no checkpoint 'best' in .*; has the run saved one yet"):
        keeper.restore("best")
    fill(keeper, (1, 2), best=(1,))
    with pytest.raises(errors.BadRequest, match=r"no checkpoint of step 3 in .*; there are \[1, 2\]"):
        keeper.restore(3)
    with pytest.raises(errors.BadRequest, match="'newest' is neither 'best', 'last' nor a step"):
        keeper.restore("newest")


def test_a_saved_state_may_be_donated_at_once(opened):
    keeper = opened(size=512)
    state = jax.tree.map(jnp.copy, make(1, 512))
    grow = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    keeper.save(state, {}, best=True)
    for _ in range(20):
        state = grow(state)
    keeper.wait()
    assert equal(opened(size=512).restore("best").state, make(1, 512))


def test_the_record_beside_a_state_is_that_of_its_moment(opened):
    """It is written in the background, while the loop adds to its sums."""
    keeper, sums = opened(), {"loss": [1.0, 1.0]}
    keeper.save(make(1), {"loop": {"sums": sums}}, best=True)
    sums["loss"][0] = 2.0
    sums["accuracy"] = [0.0, 1.0]
    keeper.wait()
    for which in ("last", "best"):
        assert opened().restore(which).meta["loop"] == {"sums": {"loss": [1.0, 1.0]}}


def test_best_checkpoints_of_a_life_that_was_cut_short_are_forgotten(opened):
    keeper = opened()
    fill(keeper, (10, 20), best=(20,))
    keeper.forget_after(10)
    assert opened().best_step() is None


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    **{
        f"one byte at {at:.0%}": lambda data, at=at: (
            data[: int(at * len(data))] + bytes([data[int(at * len(data))] ^ 4]) + data[int(at * len(data)) + 1 :]
        )
        for at in (0.05, 0.35, 0.65, 0.95)
    },
    "removed": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_found_and_the_one_before_used(damage, opened, tmp_path):
    """Whichever file is damaged, what is restored is right; damage that mattered is reported and set aside."""
    fill(opened(), (1, 2))
    opened().close()
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "checkpoints", whole)
    files = sorted(p.relative_to(whole) for p in (whole / "last/2").rglob("*") if p.is_file() and p.stat().st_size)
    reported = set()
    for file in files:
        shutil.rmtree(tmp_path / "checkpoints")
        shutil.copytree(whole, tmp_path / "checkpoints")
        path = tmp_path / "checkpoints" / file
        if DAMAGES[damage] is None:
            path.unlink()
        else:
            path.write_bytes(DAMAGES[damage](path.read_bytes()))
        lines = []
        found = opened(say=lines.append).restore_newest()
        assert found.step in (1, 2) and equal(found.state, make(found.step)), file
        assert found.meta["data"] == {"next_batch": found.step}, file
        assert found.meta["loop"] == {"seconds": 0.1 * found.step}, file
        if found.step == 1:
            aside = tmp_path / "checkpoints/damaged/2"
            assert len(lines) == 1 and "checkpoints/last/2" in lines[0], lines
            assert str(aside) in lines[0] and "the one before is used" in lines[0] and aside.is_dir()
            reported.add(str(file))
    assert {"last/2/meta/metadata", "last/2/state/manifest.ocdbt"} <= reported
    assert any(file.startswith("last/2/state/d/") for file in reported)


def test_where_all_are_damaged_the_run_does_not_begin_anew(opened, tmp_path):
    fill(opened(), (1, 2))
    opened().close()
    for path in (tmp_path / "checkpoints/last").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    lines = []
    with pytest.raises(errors.Failure, match=r"every checkpoint in .* is damaged \(steps \[2, 1\]\); to start again"):
        opened(say=lines.append).restore_newest()
    assert len(lines) == 2


def test_a_reader_changes_nothing(opened, tmp_path):
    fill(opened(), (1, 2), best=(1,))
    opened().close()
    (tmp_path / "checkpoints/last/2/state/manifest.ocdbt").write_bytes(b"")
    (tmp_path / "checkpoints/last/3.orbax-checkpoint-tmp").mkdir()

    def listing():
        return {str(p): p.stat().st_mtime_ns for p in sorted((tmp_path / "checkpoints").rglob("*"))}

    before, lines = listing(), []
    reader = opened(read_only=True, say=lines.append)
    assert reader.restore("last").step == 1 and reader.restore("best").step == 1
    assert len(lines) == 1 and "the one before is used" in lines[0]
    assert listing() == before


def test_another_model_is_refused(opened):
    fill(opened(), (1, 2))
    with pytest.raises(errors.Failure):
        opened(size=32).restore("1")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_the_older_checkpoint(opened, small_disk):
    keeper = opened(small_disk, size=256)
    for step in (1, 2):
        keeper.save(make(step, 256), {}, best=step == 1)
    keeper.wait()
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    with pytest.raises(errors.Failure) as caught:
        keeper.save(make(3, 256), {}, best=True)
        keeper.wait()
    text = str(caught.value)
    assert "the disk is full" in text and "The checkpoints of steps [1, 2] are intact" in text, text
    assert "Make room and give the same command" in text
    keeper = opened(small_disk, size=256)
    assert equal(keeper.restore("last").state, make(2, 256)) and equal(keeper.restore("best").state, make(1, 256))
    filler.unlink()
    keeper.save(make(3, 256), {}, best=True)
    keeper.wait()
    assert [opened(small_disk, size=256).restore(w).step for w in ("last", "best")] == [3, 3]


def test_the_record_beside_a_state_is_plain_json(opened, tmp_path):
    fill(opened(), (1,))
    meta = json.loads((tmp_path / "checkpoints/last/1/meta/metadata").read_text())
    assert meta["step"] == 1 and len(meta["fingerprint"]) == len(jax.tree.leaves(make(1)))


def test_checkpoints_may_lie_elsewhere(opened, tmp_path):
    workdir, elsewhere = tmp_path / "run", tmp_path / "bucket/run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"checkpoint_dir": str(elsewhere)}))
    keeper = opened(workdir)
    keeper.save(make(1), {}, best=True)
    keeper.wait()
    assert sorted(p.name for p in elsewhere.iterdir()) == ["best", "last"] and not (workdir / "checkpoints").exists()
    assert equal(opened(workdir, read_only=True).restore("best").state, make(1))
    found = files.read(str(workdir))  # as `init_from` does
    np.testing.assert_array_equal(found.tensors["params/head/bias"], make(1).params["head"]["bias"])
