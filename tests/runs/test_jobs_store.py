"""Tables of jobs whose results go to an object store."""

import contextlib
import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest
from job_tables import CONFIG, SETTINGS, difference, results

from leaps_jax import UserError
from leaps_jax.cli.main import main
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import folder, places
from leaps_jax.runs.jobs.status import status

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture
def memory():
    """An address in the memory of this process."""
    yield "memory://bucket/videos"
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """An address of a local server of S3, as far as its packages are installed."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    variables = {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    # What a server that asks for no rights takes.
    variables |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with pytest.MonkeyPatch.context() as patch, log:
        for name, value in variables.items():
            patch.setenv(name, value)
        with subprocess.Popen(words, stdout=log, stderr=log) as server:
            end = time.monotonic() + 60
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port)):
                        break
                except OSError:
                    assert time.monotonic() < end
                    time.sleep(0.1)
            fsspec.filesystem("s3").mkdir("bucket")
            yield "s3://bucket/videos"
            fsspec.filesystem("s3").clear_instance_cache()
            server.terminate()


def test_the_address_of_a_folder_is_the_folder(tmp_path):
    """So that links in it are refused, and locks are those of a disk."""
    (tmp_path / "rows").symlink_to(tmp_path)
    held = folder.Folder(f"file://{tmp_path}", jobs.Shard(1, 1), {})
    with pytest.raises(UserError, match="rows is a link"):
        held.open({})


@pytest.fixture(params=["memory", "s3"])
def out(request):
    return request.getfixturevalue(request.param)


def rows(out: str) -> dict[int, dict]:
    found = {}
    place = places.place(out)
    for number in folder.finished(place):
        name = f"rows/{number // 1000:03d}/{number:06d}.npz"
        with np.load(io.BytesIO(place.read(name))) as arrays:
            found[number] = dict(arrays)
    return found


def test_rows_are_those_of_a_disk(tmp_path, out, models, table):
    """In two starts, of which the first does a shard; a row goes through batches."""
    first = jobs.execute(table, out, SETTINGS, 3, jobs.Shard(2, 2))
    assert first["finished"] == 3
    assert (status(out).all.done, status(out).all.rows) == (3, 7)
    record = jobs.execute(table, out, SETTINGS, 3)
    assert (record["done_before"], record["finished"], record["failed"]) == (3, 4, 0)
    jobs.execute(table, tmp_path / "disk", SETTINGS, 3)
    disk, found = results(tmp_path / "disk"), rows(out)
    assert sorted(found) == sorted(disk)
    for number, row in found.items():
        assert difference(row["videos"], disk[number]["videos"]) <= 1
    assert not places.place(out).names("parts")
    other = dataclasses.replace(CONFIG, steps=7)
    with pytest.raises(UserError, match=r"differs in steps\)"):
        jobs.execute(table, out, jobs.Settings("leaps", other), 3)


def test_failed_rows_are_told(memory, models, table, capsys):
    text = table.read_text().replace("0.npz", "none.npz")
    table.write_text(text)
    words = ["--jobs", str(table), "--out", memory, "--steps", "2"]
    assert main(["synthesize", *words]) == 1
    lines = places.place(memory).read("failed-1-of-1.jsonl").splitlines()
    assert [json.loads(line)["row"] for line in lines] == [0, 4]
    captured = capsys.readouterr()
    assert f"results: 5 of 7 rows in {memory}/rows" in captured.out
    assert status(memory).all.failed == 2


def test_one_process_at_a_time(out, models, table, monkeypatch):
    place = places.place(out + "-locked")
    name = ".1-of-1.lock"
    with place.locked(name) as free:
        assert free
        with pytest.raises(UserError, match="another process does shard 1/1"):
            jobs.execute(table, out + "-locked", SETTINGS, 4)
    assert not place.exists(name)
    place.write(name, "of a process that was killed")
    with place.locked(name) as free:
        assert not free
    later = time.time() + places.LEASE + 10
    monkeypatch.setattr(places.time, "time", lambda: later)
    with place.locked(name) as free:
        assert free


def test_a_lock_is_renewed(memory, monkeypatch):
    monkeypatch.setattr(places, "LEASE", 0.06)
    place = places.place(memory)
    with place.locked("lock"):
        made = place.modified("lock")
        while place.modified("lock") == made:
            time.sleep(0.01)


def test_an_address_that_cannot_be_used(tmp_path, table, capsys):
    words = ["--jobs", str(table), "--out", "none://bucket/x"]
    assert main(["synthesize", *words]) == 2
    assert "out='none://bucket/x': cannot be used" in capsys.readouterr().err
    words = ["--model", "a@b", "--out", "s3://bucket/x", "--label", "0"]
    assert main(["synthesize", *words]) == 2
    assert "is for --jobs; give a folder" in capsys.readouterr().err
    assert not os.path.exists("s3:")
