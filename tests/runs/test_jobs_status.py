"""`leaps-jax jobs status`: what a folder tells of a run."""

import json
import os
import time

import pytest
from job_tables import SETTINGS, write

from leaps_jax import UserError
from leaps_jax.cli.main import main
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs.status import status

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture
def out(tmp_path, models, clips):
    """Six rows of two models, of which the second shard's are done but for one."""
    rows = [
        {"model": f"tiny@{i % 3 // 2}", "stimulus": clips / "0.npz", "label": i % 5}
        for i in range(6)
    ]
    rows[3]["stimulus"] = "none.npz"
    table = write(tmp_path / "jobs.csv", rows)
    jobs.execute(table, tmp_path / "out", SETTINGS, 2, jobs.Shard(2, 2))
    return tmp_path / "out"


def test_rows_by_model(out):
    found = status(out)
    assert (found.all.rows, found.all.done, found.all.failed) == (6, 2, 1)
    counts = [(m.name, m.rows, m.done, m.failed) for m in found.models]
    assert counts == [("tiny@0", 4, 1, 1), ("tiny@1", 2, 1, 0)]
    assert not found.workers and found.seconds_left is None


def test_a_table_that_is_gone_or_another(out, capsys):
    table = out.parent / "jobs.csv"
    table.write_text(table.read_text() + "tiny@0,,,run,,\n")
    assert not status(out).models and status(out).all.rows == 6
    table.unlink()
    assert not status(out).models
    assert main(["jobs", "status", str(out)]) == 0
    assert capsys.readouterr().out == "2 of 6 rows done, 1 failed, 0 running\n"


def test_a_run_that_goes_on(out, capsys):
    record = out / "shard-1-of-2.json"
    said = {"status": "running", "finished": 1, "batches": 1, "seconds": 2.0}
    said |= {"idle_share": 0.0, "running": 2}
    record.write_text(json.dumps(said))
    found = status(out)
    assert (found.running, found.rate, found.seconds_left) == (2, 0.5, 6.0)
    assert main(["jobs", "status", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 of 6 rows done, 1 failed, 2 running, 0.5 rows/s, 6 s left"
    assert lines[3].split() == ["tiny@0", "4", "1", "1"]
    assert lines[-1].startswith("shard 1/2")
    long_ago = time.time() - 3600
    os.utime(record, (long_ago, long_ago))
    assert status(out).rate == 0 and status(out).workers[0].silent > 3500


def test_no_run(tmp_path, out):
    with pytest.raises(UserError, match="is no run of a table; give the --out"):
        status(tmp_path)
    (out / "failed-2-of-2.jsonl").write_text('{"row": "one"}\n')
    with pytest.raises(UserError, match="row='one': must be a valid integer"):
        status(out)
