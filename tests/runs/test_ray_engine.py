"""Jobs on a Ray cluster of three nodes: every row once, whoever dies meanwhile."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from job_tables import TESTS, difference, files, results, write

pytest.importorskip("ray")

import ray
import ray_tables
from ray.cluster_utils import Cluster
from ray_tables import POISON, SETTINGS, alive

from leaps_jax import UserError
from leaps_jax.cli.main import main
from leaps_jax.files import locked
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import crew, ray_engine
from leaps_jax.runs.jobs.status import status

# Ray leaves pipes and logs of the processes that it started to the collector.
pytestmark = [
    pytest.mark.usefixtures("compiled"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROWS = 24


@pytest.fixture(scope="module")
def environment(compiled, tmp_path_factory):
    """What processes of Ray inherit: tests can be imported, no usage is reported.

    One process of pytest at a time has clusters, so that they do not slow each other.
    """
    lock = tmp_path_factory.getbasetemp().parent / "ray.lock"
    with pytest.MonkeyPatch.context() as patch, locked(lock, wait=True):
        path = [str(TESTS), str(TESTS / "runs"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


def started() -> Cluster:
    """Three nodes of one CPU."""
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(True, head_node_args=node | {"include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**node)
    return cluster


@pytest.fixture(scope="module")
def cluster(environment):
    cluster = started()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def tiny_workers(models, monkeypatch):
    monkeypatch.setattr(crew, "Actor", ray_tables.Tiny)


@pytest.fixture(scope="module")
def rows(clips):
    """Of two models; row 3 goes through several batches."""
    rows = [
        {"model": f"tiny@{i % 2}", "stimulus": clips / f"{i % 4}.npz", "label": i % 5}
        for i in range(ROWS)
    ]
    rows[3]["copies"] = 5
    return rows


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """What one process makes of the table, in `compare`."""
    made = {}

    def compare(out: Path, numbers=range(ROWS)):
        if not made:
            folder = tmp_path_factory.mktemp("whole")
            table = write(folder / "jobs.csv", rows)
            jobs.execute(table, folder / "out", SETTINGS, 8)
            made.update(results(folder / "out"))
        found = results(out)
        assert sorted(found) == sorted(numbers)
        for number, row in found.items():
            assert difference(row["videos"], made[number]["videos"]) <= 1
            assert row["seed"] == made[number]["seed"]
        assert not os.listdir(out / "parts")

    return compare


def until(true, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_workers_die_and_hang(
    tmp_path, cluster, tiny_workers, rows, whole, monkeypatch
):
    """A device fails, one is killed, a node is killed, one hangs: others do it all."""
    monkeypatch.setattr(ray_engine, "LATE", 1)
    folder = tmp_path / "workers"
    folder.mkdir()
    hold, once = folder / "hold", folder / "once"
    once.touch()
    table, out = write(tmp_path / "jobs.csv", rows), tmp_path / "out"
    hung = 0

    def stop_one_of_another_node(node: str) -> bool:
        nonlocal hung  # some may be starting again
        for pid, at in alive(out).items():
            with contextlib.suppress(ProcessLookupError):
                if at != node:
                    os.kill(pid, signal.SIGSTOP)
                    hung = pid
                    return True
        return False

    with ThreadPoolExecutor(1) as pool:
        try:
            run = pool.submit(ray_engine.execute, table, out, SETTINGS, 2)
            until(lambda: run.done() or len(files(out)) >= 2)
            hold.touch()
            before = files(out)
            until(lambda: run.done() or status(out).running)
            assert len(status(out).workers) == 3 and len(status(out).models) == 2
            until(lambda: alive(out))
            killed, *_ = alive(out)
            os.kill(killed, signal.SIGKILL)
            hold.unlink()
            until(lambda: run.done() or len(files(out)) >= 6)
            hold.touch()
            assert not run.done()
            node = cluster.worker_nodes.copy().pop()
            cluster.remove_node(node, allow_graceful=False)
            until(lambda: stop_one_of_another_node(node.node_id))
            hold.unlink()
            record = run.result(300)
        finally:
            hold.unlink(missing_ok=True)  # else the run, and this, would wait for ever
            if hung:
                with contextlib.suppress(ProcessLookupError):  # Ray may have ended it
                    os.kill(hung, signal.SIGKILL)
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    assert (record["finished"], record["failed"]) == (ROWS, 0)
    assert record["status"] == "finished" and record["engine"] == "ray"
    assert not once.exists()
    assert before.items() <= files(out).items(), "a row was written twice"
    whole(out)


def test_rows_that_cannot_be_done(tmp_path, cluster, tiny_workers, rows, whole, capsys):
    """One without a clip, one that ends its worker; the others go to an address."""
    bad = [dict(row) for row in rows[:6]]
    bad[1]["stimulus"] = tmp_path / "none.npz"
    bad[4]["seed"] = POISON
    table, out = write(tmp_path / "jobs.csv", bad), tmp_path / "out"
    words = ["--engine", "ray", "--batch", "2", "--steps", "6"]
    words += ["--set", "steps_per_call=3", "noise=0.3"]
    words += ["--jobs", str(table), "--out", f"file://{out}"]
    assert main(["synthesize", *words]) == 1
    failed = (out / "failed-1-of-1.jsonl").read_text().splitlines()
    failed = {line["row"]: line for line in map(json.loads, failed)}
    assert sorted(failed) == [1, 4] and failed[4]["line"] == 6
    assert "none.npz" in failed[1]["error"]
    assert f"ended its worker {ray_engine.TRIES} times" in failed[4]["error"]
    assert "\n" not in failed[4]["error"]
    captured = capsys.readouterr()
    assert "4 of 6 rows" in captured.out and "2 rows failed" in captured.err
    whole(out, [0, 2, 3, 5])


def driver(table: Path, out: Path, address: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, ray_tables.__file__, str(table), str(out), "2"],
        env=os.environ | {"RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_head_is_killed_and_a_second_driver_refused(
    tmp_path, environment, rows, whole, monkeypatch
):
    """The same command goes on with another cluster."""
    monkeypatch.setenv("PAUSE", "1")
    table, out = write(tmp_path / "jobs.csv", rows), tmp_path / "out"
    first = started()
    with driver(table, out, first.address) as run:
        until((out / ".1-of-1.lock").exists)
        with driver(table, out, first.address) as second:
            error = json.loads(second.communicate()[0])["error"]
            assert "another process does shard 1/1" in error
        until(lambda: files(out))
        assert run.poll() is None
        first.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        run.kill()  # it was on the same machine
    first.shutdown()
    monkeypatch.delenv("PAUSE")
    before = files(out)
    assert 0 < len(before) < ROWS
    second = started()
    with driver(table, out, second.address) as run:
        record = json.loads(run.communicate()[0])
    second.shutdown()
    assert record["done_before"] >= len(before)
    assert record["done_before"] + record["finished"] == ROWS
    assert before.items() <= files(out).items(), "a row was written twice"
    whole(out)


def test_a_machine_without_devices_decodes(tmp_path, environment, rows, whole):
    """Tasks of Ray do, where devices are no processors; errors keep their line."""
    some = [dict(row) for row in rows[:6]]
    some[1]["stimulus"] = tmp_path / "none.npz"
    table, out = write(tmp_path / "jobs.csv", some), tmp_path / "out"
    store = {"object_store_memory": 80 * 2**20}
    head = {"num_cpus": 0, "num_gpus": 1, "include_dashboard": False}
    cluster = Cluster(True, head_node_args=head | store)
    cluster.add_node(num_cpus=1, **store)
    with driver(table, out, cluster.address) as run:
        record = json.loads(run.communicate()[0])
    cluster.shutdown()
    assert (record["finished"], record["failed"]) == (5, 1)
    (line,) = (out / "failed-1-of-1.jsonl").read_text().splitlines()
    assert json.loads(line)["error"].startswith("stimulus=")
    whole(out, [0, 2, 3, 4, 5])


def test_no_ray(tmp_path, rows, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    table = write(tmp_path / "jobs.csv", rows)
    words = ["--jobs", str(table), "--out", str(tmp_path / "out"), "--engine", "ray"]
    assert main(["synthesize", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "engine='ray': is not installed; pip install 'leaps_jax[ray]'" in line
    assert not (tmp_path / "out").exists()


def test_workers_that_no_machine_has_room_for(tmp_path, cluster, tiny_workers, rows):
    table = write(tmp_path / "jobs.csv", rows)
    with pytest.raises(UserError, match="devices-per-worker=2: no machine has more"):
        ray_engine.execute(table, tmp_path / "out", SETTINGS, 2, devices=2)
