"""One process at a time: who is refused, what a dead process left, and that only one of many gets the lock."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from recvis_jax import errors
from recvis_jax.training import lock

HOLDER = """
import sys, time
from pathlib import Path
from recvis_jax.training import lock
lock.Lock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(lock, "PERIOD", 0.05)
    monkeypatch.setattr(lock, "SILENCE", 0.5)
    yield
    lock.release_all()


def owner(tmp_path, **changes):
    """Writes the lock of another process."""
    found = {**lock._self(), "machine": "another", "host": "node7", "pid": 12, "since": "then", **changes}
    (tmp_path / lock.NAME).write_text(json.dumps(found))


def test_a_second_process_is_refused_and_told_of_the_first(holder, tmp_path):
    before = (tmp_path / lock.NAME).read_text()
    host = json.loads(before)["host"]
    for _ in range(2):
        with pytest.raises(errors.BadRequest, match=rf"is being written by process {holder.pid} on {host} \(since 20"):
            lock.Lock(tmp_path).take()
    assert (tmp_path / lock.NAME).read_text() == before and os.listdir(tmp_path) == [lock.NAME]
    with lock.Lock(tmp_path / ".."):  # of another folder
        pass


def test_what_a_killed_process_left_is_taken_over(holder, tmp_path):
    holder.kill()  # not waited for: a zombie no longer writes
    time.sleep(0.2)
    lines = []
    held = lock.Lock(tmp_path, lines.append).take()
    assert len(lines) == 1 and f"taking over from process {holder.pid} on" in lines[0]
    held.check()
    held.release()
    assert not os.listdir(tmp_path)


def test_a_process_id_that_is_another_process_now_holds_nothing(tmp_path):
    mine = lock._self()
    owner(tmp_path, machine=mine["machine"], pid=os.getppid(), process_started="1")
    lock.Lock(tmp_path, print).take().release()
    owner(tmp_path, machine=mine["machine"], pid=os.getppid(), process_started=lock._started(os.getppid()))
    with pytest.raises(errors.BadRequest, match="is being written by"):
        lock.Lock(tmp_path, print).take()


def test_a_process_of_another_machine_is_known_by_its_signs_of_life(tmp_path):
    owner(tmp_path)
    other = lock.Lock(tmp_path)
    other._file = os.open(other.path, os.O_RDWR)
    lines = []
    thread = threading.Thread(target=other._beat, daemon=True)
    thread.start()
    with pytest.raises(errors.BadRequest, match=r"process 12 on node7 \(since then\).* rm .*\.lock"):
        lock.Lock(tmp_path, lines.append).take()
    assert len(lines) == 1 and "may still be running; waiting" in lines[0]
    other._closing.set()
    thread.join()
    lock.Lock(tmp_path, lines.append).take().release()
    assert "taking over from process 12 on node7" in lines[-1]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"pid": "x", "machine": 3}', "\xff", '{"pid": 1e999}'])
def test_a_damaged_lock_shows_no_life(text, tmp_path):
    (tmp_path / lock.NAME).write_bytes(text.encode("latin-1"))
    lock.Lock(tmp_path, lambda _: None).take().release()
    assert not os.listdir(tmp_path)


def test_an_old_lock_of_another_machine_is_not_waited_for(tmp_path):
    owner(tmp_path)
    os.utime(tmp_path / lock.NAME, (0, 0))
    lines = []
    lock.Lock(tmp_path, lines.append).take().release()
    assert len(lines) == 1 and "waiting" not in lines[0]


def test_a_process_that_lost_its_lock_writes_no_more(tmp_path):
    held = lock.Lock(tmp_path).take()
    held.check()
    (tmp_path / lock.NAME).unlink()  # by hand, and nobody else came
    held.check()
    assert (tmp_path / lock.NAME).exists()
    (tmp_path / lock.NAME).unlink()
    owner(tmp_path)
    with pytest.raises(errors.Failure, match=r"now belongs to process 12 on node7"):
        held.check()
    held.release()
    assert (tmp_path / lock.NAME).exists(), "another's lock is not removed"


MANY = """
import sys
from pathlib import Path
from recvis_jax import errors
from recvis_jax.training import lock
folder, count = Path(sys.argv[1]), 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(200):
    try:
        held = lock.Lock(folder, lambda _: None).take()
    except errors.BadRequest:
        continue
    inside = folder / "inside"
    inside.mkdir()  # fails where another is in
    inside.rmdir()
    count += 1
    if count % 2:
        held._closing.set()
        lock._held.clear()  # as if killed, by what another process sees
        text = held.path.read_text().replace(held._own["process_started"], "1")
        held.path.write_text(text)
    else:
        held.release()
print(count)
"""


@pytest.mark.full
def test_one_of_many_gets_it(tmp_path):
    many = [
        subprocess.Popen(
            [sys.executable, "-c", MANY, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in many:
        assert process.stdout.readline() == "ready\n"
    counts = [process.communicate("go\n")[0] for process in many]
    assert all(process.returncode == 0 for process in many) and sum(map(int, counts)) > 4
