"""Checkpoints: which are kept, that a damaged one is never taken for whole, and what a full disk costs."""

import contextlib
import errno
import functools
import json
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.pretrained import files
from recvis_jax.training import checkpoint, orbax_files, sharding
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


@pytest.mark.full
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


def test_a_best_checkpoint_ahead_of_the_run_stays_until_the_run_has_come_by(opened, tmp_path):
    """The newest was damaged: the best, of a later step than the one gone on from, is not lost meanwhile."""
    fill(opened(), (10, 20, 30), best=(30,))
    opened().close()
    (tmp_path / "checkpoints/last/30/state/manifest.ocdbt").write_bytes(b"")
    keeper = opened()
    assert keeper.restore_newest().step == 20 and keeper.best_step() == 30
    fill(keeper, (25,), best=(25,))  # for the life that goes on it is the best so far
    assert keeper.best_step() == 25 and (tmp_path / "checkpoints/ahead/30/state").is_dir()
    keeper = opened()
    fill(keeper, (30,), best=(30,))
    assert keeper.restore("best").step == 30 and not list((tmp_path / "checkpoints/ahead").iterdir())
    assert equal(opened().restore("best").state, make(30))


def test_a_best_checkpoint_that_is_reached_again_is_kept_as_it_is(opened, tmp_path):
    fill(opened(), (10, 20), best=(20,))
    shutil.rmtree(tmp_path / "checkpoints/last/20")
    keeper, file = opened(), tmp_path / "checkpoints/best/20/meta/metadata"
    before = file.stat().st_ino
    fill(keeper, (20,), best=(20,))
    assert file.stat().st_ino == before
    shutil.rmtree(tmp_path / "checkpoints/last/20")
    keeper = opened()
    keeper.save(make(20).replace(key=jnp.zeros(2, jnp.uint32)), {}, best=True)  # as computed on another machine
    keeper.wait()
    assert not opened().restore("best").state.key.any()


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


@pytest.mark.full
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
    for _ in range(2):  # nor the next time
        with pytest.raises(
            errors.Failure, match=r"\(steps \[1, 2\]\) can be used: .*Nothing was moved\. To start again"
        ):
            opened().restore_newest()
    assert sorted(p.name for p in (tmp_path / "checkpoints/last").iterdir()) == ["1", "2"]


def test_where_the_last_are_lost_the_best_is_used(opened, tmp_path):
    fill(opened(), (1, 2, 3), best=(1,))
    opened().close()
    (tmp_path / "checkpoints/last/2/state/manifest.ocdbt").write_bytes(b"")
    (tmp_path / "checkpoints/last/3/meta/metadata").write_text("{")
    lines = []
    found = opened(say=lines.append).restore_newest()
    assert found.step == 1 and equal(found.state, make(1)) and found.meta["data"] == {"next_batch": 1}
    assert len(lines) == 2 and all("best/1 is used" in line for line in lines)
    assert sorted(p.name for p in (tmp_path / "checkpoints/damaged").iterdir()) == ["2", "3"]
    shutil.rmtree(tmp_path / "checkpoints/last")
    assert opened().restore_newest().step == 1


def test_what_was_wrongly_set_aside_is_used_where_nothing_else_is(opened, tmp_path):
    fill(opened(), (1, 2))
    opened().close()
    (tmp_path / "checkpoints/last").rename(tmp_path / "checkpoints/damaged")
    lines = []
    keeper = opened(say=lines.append)
    assert keeper.restore_newest().step == 2 and "damaged/2 is whole; it is now in" in lines[-1]
    fill(keeper, (3,))
    assert opened().restore_newest().step == 3


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_file_in_the_place_of_checkpoints_is_no_beginning(name, opened, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).write_text("")
    with pytest.raises(errors.Failure, match=rf"the checkpoints in .*/{name} cannot be read: Not a directory"):
        opened(read_only=True).restore_newest()


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


def other(step, change):
    state = make(step, 8)
    if change == "shape":
        return make(step, 4)
    if change == "type":
        return state.replace(step=jnp.float32(0))
    head = state.params["head"] | {"scale": state.params["head"]["bias"]}
    return state.replace(params={"head": head} if change == "more" else {"neck": head})


@pytest.mark.parametrize("earlier_version", [False, True])
@pytest.mark.parametrize(
    "change, expected",
    {
        "shape": r"4 of another shape or type \(params/head/bias float32\[8\], now float32\[4\], params/head/kernel ",
        "type": r"1 of another shape or type \(step int32\[\], now float32\[\]\)",
        "more": r"1 missing there \(params/head/scale\)\. Nothing was changed",
        "renamed": r"3 missing there \(params/neck/.*\); 2 only there \(params/head/bias, params/head/kernel\)",
    }.items(),
)
def test_another_state_is_refused_and_nothing_is_moved(change, expected, earlier_version, opened, tmp_path):
    keeper = opened(size=8)
    for step in (1, 2):
        keeper.save(make(step, 8), {}, best=step == 1)
    keeper.wait()
    if earlier_version:  # which recorded names only
        for path in (tmp_path / "checkpoints").rglob("meta/metadata"):
            meta = json.loads(path.read_text())
            del meta["shapes"]
            path.write_text(json.dumps({**meta, "digest": orbax_files.digest(meta)}))
    template = jax.eval_shape(lambda: other(0, change))
    for read_only in (True, False):
        keeper = checkpoint.Checkpointer(
            tmp_path, sharding.laid_out(template, sharding.make_mesh()), read_only=read_only
        )
        for act in (keeper.refuse_mismatch, keeper.restore_newest, functools.partial(keeper.restore, "best")):
            with pytest.raises(errors.BadRequest, match=f"is intact, but its model or optimizer differs .*{expected}"):
                act()
        keeper.close()
    there = {p.name: sorted(s.name for s in p.iterdir()) for p in (tmp_path / "checkpoints").iterdir()}
    assert there == {"last": ["1", "2"], "best": ["1"]}
    assert equal(opened(size=8).restore_newest().state, make(2, 8))  # the change taken back


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


@pytest.mark.parametrize(
    "number, expected",
    {
        errno.ENOSPC: r"the disk is full: .* There is no earlier checkpoint\. Make room and give the same",
        errno.EDQUOT: r"the disk is full: .* Make room",
        errno.EROFS: r"saving a checkpoint in .* failed \(in the library\). There is no earlier checkpoint\. Give",
    }.items(),
)
def test_room_is_asked_for_only_where_there_is_none(number, expected, opened, monkeypatch):
    keeper = opened()

    def save(*_, **__):
        try:
            raise OSError(number, os.strerror(number))
        except OSError as e:
            raise ValueError("in the library") from e

    monkeypatch.setattr(keeper._last, "save", save)
    with pytest.raises(errors.Failure, match=expected):
        keeper.save(make(1), {}, best=False)


def test_nothing_is_saved_by_a_process_that_lost_the_run(opened, tmp_path):
    def lost():
        raise errors.Failure("the lock is another's")

    with pytest.raises(errors.Failure, match="another's"):
        opened(held=lost).save(make(1), {}, best=True)
    assert opened().restore_newest() is None


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
