"""Jobs in processes of their own: killed, stopped, several at once, for long."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from job_tables import SETTINGS, difference, files, results, start, write

from leaps_jax.runs import jobs

pytestmark = pytest.mark.usefixtures("compiled")


def test_killed_and_started_again(tmp_path, clips):
    """At most the batches in flight are lost, and nothing is written twice."""
    rows = [
        {"model": "tiny@0", "stimulus": clips / f"{i % 4}.npz", "label": i % 5}
        for i in range(40)
    ]
    rows[3]["copies"] = 9  # goes through five batches
    table, out = write(tmp_path / "jobs.csv", rows), tmp_path / "out"
    batch, before = 2, 0
    for wanted in (2, 12):
        process = start(table, out, batch, 40)
        while process.poll() is None and len(files(out)) < wanted:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done, now = files(out), videos(out)
        assert wanted <= len(done) < 40
        finished = json.loads((out / "shard-1-of-1.json").read_text())["batches"]
        # two at most were between the devices and the disk
        assert now - before >= batch * (finished - 2)
        before = now
    record = record_of(start(table, out, batch, 40))
    assert record["done_before"] == len(done) and not record["failed"]
    assert record["finished"] == 40 - len(done)
    assert done.items() <= files(out).items(), "rows that were there are the same files"
    assert sorted(results(out)) == list(range(40))
    assert results(out)[3]["videos"].shape[0] == 9 and not os.listdir(out / "parts")
    assert record["batches"] == -(-(48 - before) // batch)
    whole = jobs_of(table, tmp_path / "whole")
    for number, row in results(out).items():
        assert difference(row["videos"], whole[number]["videos"]) <= 1


def record_of(process: subprocess.Popen) -> dict:
    """What a process prints last, once it has ended well."""
    lines = process.communicate()[0].splitlines()
    assert process.returncode == 0
    return json.loads(lines[-1])


def videos(out: Path) -> int:
    """Finished rows' and those of parts."""
    copies = [len(row["videos"]) for row in results(out).values()]
    for path in out.glob("parts/*/0*.npz"):
        first, last = path.stem.split("-")
        copies.append(int(last) + 1 - int(first))
    return sum(copies)


def jobs_of(table: Path, out: Path) -> dict[int, dict[str, np.ndarray]]:
    record_of(start(table, out, 8, 40))
    return results(out)


def test_ctrl_c_ends_in_order(tmp_path, clips):
    rows = [{"model": "tiny@0", "stimulus": clips / "0.npz", "label": 1, "copies": 500}]
    table, out = write(tmp_path / "jobs.csv", rows), tmp_path / "out"
    process = start(table, out, 4, 40)
    while process.poll() is None and not list(out.glob("parts/*/0*.npz")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    record = record_of(process)
    assert record["status"] == "stopped"
    copies = 4 * len(list(out.glob("parts/*/0*.npz")))
    assert copies in (4 * record["batches"], 4 * record["batches"] - 4)


def test_four_devices_make_the_same_videos(tmp_path, models, table):
    """Also where the batch does not divide by them, and where it is smaller."""
    jobs.execute(table, tmp_path / "one", SETTINGS, 5)
    one = results(tmp_path / "one")
    for batch in (3, 6):
        flags = "--xla_force_host_platform_device_count=4"
        out = tmp_path / str(batch)
        record_of(start(table, out, batch, 6, XLA_FLAGS=flags))
        for number, row in results(out).items():
            assert difference(row["videos"], one[number]["videos"]) <= 1


DISTRIBUTED = """
import sys
import jax

address, number = sys.argv.pop(), int(sys.argv.pop())
jax.distributed.initialize(address, 2, number)
"""


def test_two_processes_share_the_rows(tmp_path, models, table):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        start(
            table,
            tmp_path / "out",
            3,
            6,
            before=DISTRIBUTED,
            words=[str(number), address],
        )
        for number in range(2)
    ]
    records = [record_of(process) for process in processes]
    assert [record["finished"] for record in records] == [4, 3]
    jobs.execute(table, tmp_path / "one", SETTINGS, 3)
    one, both = results(tmp_path / "one"), results(tmp_path / "out")
    assert list(both) == list(range(7))
    for number, row in both.items():
        assert difference(row["videos"], one[number]["videos"]) <= 1


@pytest.mark.heavy
def test_memory_of_the_host_stays_flat(tmp_path, clips):
    rows = (
        {"model": "tiny@0", "stimulus": clips / f"{i % 4}.npz", "label": i % 5}
        for i in range(2000)
    )
    table = write(tmp_path / "jobs.csv", rows)
    process = start(table, tmp_path / "out", 16, 1, every=12)
    lines = process.communicate()[0].splitlines()
    assert process.returncode == 0
    resident = [float(line.split()[1]) for line in lines[:-1]]
    assert len(resident) >= 8
    assert max(resident[2:]) - min(resident[2:]) < 32, resident
