"""The folder of a run of jobs: which runs it takes, and how rows are written."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from job_tables import CONFIG, SETTINGS, TESTS, files, results, write

from leaps_jax import UserError
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import folder
from leaps_jax.zoo import load as loading
from leaps_jax.zoo import references

pytestmark = pytest.mark.usefixtures("compiled")
FINGERPRINT = references.fingerprint


def test_a_folder_of_another_run_is_refused(tmp_path, models, table):
    out = tmp_path / "out"
    jobs.execute(table, out, SETTINGS, 4)
    before = files(out)
    again = jobs.execute(table, out, SETTINGS, 2)
    assert (again["done_before"], again["finished"]) == (7, 0)
    other = dataclasses.replace(CONFIG, steps=7)
    other = jobs.Settings("leaps", other, short="loop")
    with pytest.raises(UserError, match=r"differs in short, steps\)"):
        jobs.execute(table, out, other, 4)
    table.write_text(table.read_text() + "tiny@0,,,run,,\n")
    with pytest.raises(UserError, match=r"differs in table\)"):
        jobs.execute(table, out, SETTINGS, 4)
    with pytest.raises(UserError, match="exists and is no run"):
        jobs.execute(table, TESTS, SETTINGS, 4)
    assert files(out) == before


@pytest.fixture
def weights(tmp_path, models, monkeypatch) -> Path:
    """A file of weights, of which every reference with its path is `tiny@0`."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.json").write_text("{}")
    (tmp_path / "weights" / "variables").write_bytes(b"one")
    tiny = loading.load_model("tiny@0")
    monkeypatch.setattr(loading, "load_model", lambda reference, **_: tiny)
    monkeypatch.setattr(references, "fingerprint", FINGERPRINT)
    return tmp_path / "weights" / "variables"


@pytest.mark.parametrize("argument", ["model", "verifier"])
def test_a_run_goes_on_with_its_weights_alone(tmp_path, weights, clips, argument):
    """The folder of the weights, not its name, decides."""
    other = tmp_path / "other"
    shutil.copytree(weights.parent, other)
    row = {"model": f"x3d_xs@{other}", "verifier": f"x3d_s@{other}", "label": 0}
    name = row[argument] = f"x3d_xs@{weights.parent}"
    row |= {"stimulus": clips / "0.npz"}
    table, out = write(tmp_path / "jobs.csv", [row, row]), tmp_path / "out"
    assert jobs.execute(table, out, SETTINGS, 2, jobs.Shard(1, 2))["finished"] == 1
    weights.write_bytes(b"two")
    before = files(out)
    for shard in (jobs.Shard(1, 2), jobs.Shard(2, 2)):
        with pytest.raises(UserError) as caught:
            jobs.execute(table, out, SETTINGS, 2, shard)
        text = str(caught.value)
        assert f"(it differs in weights of {name})" in text and "\n" not in text
        assert "choose another folder, or put these weights back" in text
    assert files(out) == before
    weights.write_bytes(b"one")
    assert jobs.execute(table, out, SETTINGS, 2, jobs.Shard(2, 2))["finished"] == 1


def test_weights_that_change_while_a_run_goes_on(tmp_path, weights, monkeypatch):
    tiny = loading.load_model("any")

    def late(reference, **_):
        weights.write_bytes(b"two")
        return tiny

    monkeypatch.setattr(loading, "load_model", late)
    row = {"model": f"x3d_xs@{weights.parent}", "label": 0}
    table, out = write(tmp_path / "jobs.csv", [row]), tmp_path / "out"
    settings = jobs.Settings("activation_maximization", CONFIG)
    record = jobs.execute(table, out, settings, 2)
    assert record["failed"] == 1 and "weights of x3d_xs" in record["errors"][0]
    assert not results(out)


def test_weights_that_come_later(tmp_path, weights):
    row = {"model": f"x3d_xs@{tmp_path / 'late'}", "label": 0}
    table, out = write(tmp_path / "jobs.csv", [row]), tmp_path / "out"
    settings = jobs.Settings("activation_maximization", CONFIG)
    assert jobs.execute(table, out, settings, 2)["failed"] == 1
    weights.parent.rename(tmp_path / "late")
    assert jobs.execute(table, out, settings, 2)["finished"] == 1
    (tmp_path / "late" / "variables").write_bytes(b"two")
    with pytest.raises(UserError, match="differs in weights of x3d_xs@"):
        jobs.execute(table, out, settings, 2)


def test_fingerprint(tmp_path):
    shipped = references.fingerprint("x3d_xs@actions")
    copy = tmp_path / "copy"
    shutil.copytree(references.shipped("x3d_xs")["actions"], copy)
    assert references.fingerprint(f"x3d_xs@{copy}") == shipped
    file = max(copy.rglob("*"), key=lambda path: path.stat().st_size)
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert references.fingerprint(f"x3d_xs@{copy}") != shipped
    (tmp_path / "x3d.pyth").write_bytes(b"any")
    assert references.fingerprint(f"x3d_xs@{tmp_path / 'x3d.pyth'}") != shipped
    for reference in ("x3d_xs", "x3d_xs@none", "none@actions", ""):
        with pytest.raises(UserError):
            references.fingerprint(reference)


def test_a_row_is_written_once_and_whole(tmp_path, monkeypatch):
    held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
    held.open({})
    row = jobs.Row(0, 2, "a@b", "", "", "run", 2, 0)

    def broken(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    arrays = {"videos": np.zeros((2, 1, 1, 1, 3), np.uint8)}
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", broken)
        for copies in ([0, 1], [0]):
            with pytest.raises(OSError):
                held.add(row, copies, arrays, [])
    assert not files(tmp_path) and held.missing(row) == [0, 1]
    assert held.add(row, [0, 1], arrays, [])
    before = files(tmp_path)
    assert held.add(row, [0, 1], {"videos": arrays["videos"] + 1}, [])
    assert files(tmp_path) == before and not results(tmp_path)[0]["videos"].any()


def test_copies_that_were_written_are_not_made_again(tmp_path):
    row = jobs.Row(7, 2, "a@b", "", "", "run", 5, 0)
    videos = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1, 1)
    for copies, missing in (([1], [0, 1, 2, 3, 4]), ([0, 3], [0, 2, 3, 4])):
        held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
        held.open({})  # as a run does that was killed
        assert held.missing(row) == missing and not held.is_done(7)
        assert not held.add(row, copies, {"videos": videos[copies]}, ["total"])
    held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
    held.open({})
    assert held.missing(row) == [2, 4]
    assert held.add(row, [2, 4], {"videos": videos[[2, 4]]}, ["total"])
    assert results(tmp_path)[7]["videos"].ravel().tolist() == [0, 1, 2, 3, 4]
    assert not os.listdir(tmp_path / "parts")


def test_damaged_parts_of_a_row_are_made_again(tmp_path):
    row = jobs.Row(7, 2, "a@b", "", "", "run", 4, 0)
    videos = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1, 1)

    def opened():
        held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
        held.open({})
        return held

    for copies in ([0], [2]):
        assert not opened().add(row, copies, {"videos": videos[copies]}, ["total"])
    parts = tmp_path / "parts" / "000007"
    (parts / "a-b.npz").write_bytes(b"another's")
    whole = (parts / "000002-000002.npz").read_bytes()
    for content in (b"", b"PK", whole[:100], whole[:150] + b"?" + whole[151:]):
        (parts / "000002-000002.npz").write_bytes(content)
        assert opened().missing(row) == [1, 2, 3]
        assert not (parts / "000002-000002.npz").exists()
    held = opened()
    assert held.missing(row) == [1, 2, 3]
    assert held.add(row, [1, 2, 3], {"videos": videos[[1, 2, 3]]}, ["total"])
    assert results(tmp_path)[7]["videos"].ravel().tolist() == [0, 1, 2, 3]


def test_a_part_that_a_full_disk_never_took_leaves_nothing(tmp_path):
    row = jobs.Row(7, 2, "a@b", "", "", "run", 2, 0)
    held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
    held.open({})
    (tmp_path / "parts" / "000007").mkdir()
    held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
    held.open({})
    assert held.missing(row) == [0, 1]
    videos = np.zeros((2, 1, 1, 1, 1), np.uint8)
    assert held.add(row, [0, 1], {"videos": videos}, ["total"])
    assert list(results(tmp_path)) == [7] and not os.listdir(tmp_path / "parts")


def test_a_folder_whose_record_could_not_be_written_is_taken(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("leaps_jax.files.write_json", full)
        folder.Folder(tmp_path, jobs.Shard(1, 1), {}).open({})
    folder.Folder(tmp_path, jobs.Shard(1, 1), {}).open({})
    assert (tmp_path / "jobs.json").exists()


def test_the_batch_matters_with_a_verifier_alone(tmp_path, models, clips):
    row = {"model": "tiny@0", "stimulus": clips / "0.npz", "label": 0}
    table = write(tmp_path / "jobs.csv", [row | {"verifier": "tiny@1"}])
    jobs.execute(table, tmp_path / "out", SETTINGS, 1)
    with pytest.raises(UserError, match=r"differs in batch\)"):
        jobs.execute(table, tmp_path / "out", SETTINGS, 2)


def test_one_process_a_shard(tmp_path, models, table):
    held = folder.Folder(tmp_path / "out", jobs.Shard(1, 1), {})
    (tmp_path / "out").mkdir()
    with held.locked(), pytest.raises(UserError, match="another process"):
        jobs.execute(table, tmp_path / "out", SETTINGS, 4)
    assert jobs.execute(table, tmp_path / "out", SETTINGS, 4)["finished"] == 7
