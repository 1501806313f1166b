"""Threads of a run of jobs: devices do not wait for clips, nor for the disk."""

import os
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from job_tables import SETTINGS, write
from tiny import make_tiny

from leaps_jax.data import clips as clips_module
from leaps_jax.progress import Stop
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import batches, folder, groups, journal, pipeline
from leaps_jax.runtime import engine, parallel
from leaps_jax.zoo import load as loading

pytestmark = pytest.mark.usefixtures("compiled")


def test_several_clips_are_decoded_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    both = threading.Barrier(2, timeout=30)

    def decoding(row):
        def decode():
            both.wait()
            return row.number

        return decode

    rows = [jobs.Row(i, i + 2, "a@b", "", "c", "0", 1, 0) for i in range(6)]
    held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
    group = SimpleNamespace(model=make_tiny(0), primed=True, decoding=decoding)
    ready = batches.decoded(
        [(row, [0]) for row in rows],
        SimpleNamespace(of=lambda *_: group),
        journal.Journal(held),
    )
    assert [item.stimulus for _, items in ready for item in items] == list(range(6))


def test_a_batch_is_made_while_another_runs():
    made = threading.Event()

    def placed():
        yield "first"
        made.set()
        yield "second"

    with batches.ahead(placed(), Stop()) as ahead:
        assert next(ahead) == "first"
        assert made.wait(30), "nobody asked for the second"
        assert list(ahead) == ["second"]


def test_a_slow_disk_holds_the_devices_up(tmp_path):
    """What waits to be written is two batches, not all of them."""
    slow, third = threading.Event(), threading.Event()
    row = jobs.Row(0, 2, "a@b", "", "c", "0", 1, 0)
    held = SimpleNamespace(add=lambda *_: slow.wait(30))
    items = [groups.Item(row, 0, 0, None)]
    of = (items, np.zeros((1, 1, 1)), {"total": np.zeros(1)})

    def submit(writer):
        for _ in range(3):
            writer.submit(*of)
        third.set()

    done = SimpleNamespace(finish=lambda: None)
    with pipeline._Writer(held, done) as writer:
        thread = threading.Thread(target=submit, args=[writer])
        thread.start()
        assert not third.wait(0.3)
        slow.set()
        thread.join()
    assert third.is_set()


class Clock:
    """Time that passes for what a test says alone, however fast the machine is."""

    def __init__(self, monkeypatch):
        self._now, self._changed = 0.0, threading.Condition()
        self.ready = self.over = 0  # batches
        monkeypatch.setattr(journal, "time", self)
        make, end = groups.Group.ready, journal.Journal.end

        def ready(group, *of):
            made = make(group, *of)
            self.count("ready")
            return made

        def over(of):
            end(of)
            self.count("over")

        monkeypatch.setattr(groups.Group, "ready", ready)
        monkeypatch.setattr(journal.Journal, "end", over)

    def monotonic(self) -> float:
        return self._now

    def count(self, what: str) -> None:
        with self._changed:
            setattr(self, what, getattr(self, what) + 1)
            self._changed.notify_all()

    def wait(self, what: str, number: int) -> None:
        with self._changed:
            came = self._changed.wait_for(lambda: getattr(self, what) >= number, 60)
        assert came, f"{getattr(self, what)} batches are {what}, not {number}"

    def takes(self, monkeypatch, where, name: str, seconds: float, before) -> None:
        """A function takes this long, once `before` allows it to go on."""
        function = getattr(where, name)

        def slow(*args, **options):
            before()
            with self._changed:
                self._now += seconds
            return function(*args, **options)

        monkeypatch.setattr(where, name, slow)


def test_devices_do_not_wait(tmp_path, models, clips, monkeypatch):
    """A batch takes long beside what its clips take; they are decoded meanwhile."""
    clock = Clock(monkeypatch)
    rows = [
        {"model": "tiny@0", "stimulus": clips / f"{i % 4}.npz", "label": i % 5}
        for i in range(32)
    ]
    table = write(tmp_path / "jobs.csv", rows)

    def next_is_ready():
        clock.wait("ready", min(clock.over + 2, 8))

    clock.takes(monkeypatch, clips_module, "load_stimulus", 1, lambda: None)
    clock.takes(monkeypatch, engine.Engine, "run", 100, next_is_ready)
    record = jobs.execute(table, tmp_path / "out", SETTINGS, 4)
    assert record["batches"] == 8 and record["idle_share"] < 0.05
    assert record["seconds"] >= 8 * 100


def test_one_thread_alone_uses_the_devices(tmp_path, models, table, monkeypatch):
    """While it does, the others read, decode, load, compile and write."""
    used, compiled, loaded = [], [], []

    def heard(module, name, heard_of):
        function = getattr(module, name)

        def hearing(*args, **options):
            heard_of.append(threading.current_thread())
            return function(*args, **options)

        monkeypatch.setattr(module, name, hearing)

    for name in ("shard", "replicate", "gather", "gather_metrics"):
        heard(parallel, name, used)
    heard(engine, "trace", compiled)
    load = loading.load_model

    def load_model(*args, **options):
        loaded.append(jax.config.jax_default_device)
        return load(*args, **options)

    monkeypatch.setattr(loading, "load_model", load_model)
    record = jobs.execute(table, tmp_path / "out", SETTINGS, 2)
    assert record["finished"] == 7 and record["failed"] == 0
    assert set(used) == {threading.main_thread()}
    assert {thread.name for thread in compiled} == {"batches"}
    assert loaded and {device.platform for device in loaded} == {"cpu"}


def test_a_slow_decoder_shows_as_idle(tmp_path, models, clips, monkeypatch):
    """The clock of the idle time does see a device that waits."""
    clock = Clock(monkeypatch)
    rows = [
        {"model": "tiny@0", "stimulus": clips / "0.npz", "label": i} for i in "0123"
    ]
    decoded = iter(range(4))

    def none_is_left_to_run():
        clock.wait("over", next(decoded))

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    clock.takes(monkeypatch, clips_module, "load_stimulus", 3, none_is_left_to_run)
    clock.takes(monkeypatch, engine.Engine, "run", 1, lambda: None)
    table = write(tmp_path / "jobs.csv", rows)
    record = jobs.execute(table, tmp_path / "out", SETTINGS, 1)
    assert (record["idle_seconds"], record["idle_share"]) == (3 * 3, 3 / 4)
