"""The folder of a run: links are not followed, and files of others stay."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from leaps_jax import Config, UserError, files, objectives
from leaps_jax.runs import folder as runs
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import journal
from leaps_jax.synthesis import prepare

OTHERS = [".git/HEAD", "videos/thesis.txt", "videos/000_holiday.mp4", "state/notes.txt"]


@pytest.fixture(scope="module")
def problems(tiny):
    """Of two runs, whose videos have different names."""
    stimuli = np.random.default_rng(0).random((1, 4, 32, 32, 3), np.float32)
    config = Config(steps=2, steps_per_call=2, init="stimulus")
    given = {"config": config, "objective": objectives.cross_entropy()}
    return [prepare(tiny, stimuli, [label], **given) for label in (0, 1)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, problems):
    folder = tmp_path_factory.mktemp("finished") / "run"
    runs.execute(folder, problems[0], {}, {}, preview_every=0)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


def test_overwrite_deletes_what_the_run_wrote_alone(run, problems):
    written = {path for path in content(run) if (run / path).is_file()}
    listed = json.loads((run / "run.json").read_text())["files"]
    assert {path for path in written if not path.startswith("state")} <= {*listed}
    videos = {path for path in written if path.startswith("videos/")}
    assert len(videos) == 2
    for name in OTHERS:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("precious")
    other = {"labels": [1]}
    with pytest.raises(UserError, match="holds another run.*--overwrite"):
        runs.execute(run, problems[1], other, {})
    runs.execute(run, problems[1], other, {}, overwrite=True, preview_every=0)
    for name in OTHERS:
        assert (run / name).read_text() == "precious"
    left = {path for path in content(run) if path.startswith("videos/")}
    assert not left & videos and len(left) == 2 + 2


def test_overwrite_leaves_no_trace_of_a_run(run):
    runs._forget(run)
    assert [path.name for path in run.iterdir()] == ["run.json"]


STRANGE = {
    "no object": "[]",
    "cut short": "{",
    "of another program": '{"loss": 0.5}',
    "without a list": '{"identity": {}, "status": "", "step": 0, "seconds": 0}',
}


@pytest.mark.parametrize("record", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_run_of_another_program_stays(record, overwrite, tmp_path, problems):
    folder = tmp_path / "run"
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "a.mp4").write_text("precious")
    (folder / "run.json").write_text(record)
    before = content(folder)
    with pytest.raises(UserError, match="choose another folder") as raised:
        runs.execute(folder, problems[0], {}, {}, overwrite=overwrite)
    assert "\n" not in str(raised.value) and content(folder) == before
    if overwrite or "identity" not in record:
        assert "--overwrite" not in str(raised.value)


def test_a_list_that_leads_out_of_the_folder_deletes_nothing_there(run):
    victim = run.parent / "victim_.mp4"
    victim.write_text("precious")
    record = json.loads((run / "run.json").read_text())
    record["files"] += ["../victim_.mp4", "videos/000_/../../../victim_.mp4"]
    record["files"] += [str(victim), "videos", "state", 3]
    (run / "run.json").write_text(json.dumps(record))
    runs._forget(run)
    assert victim.read_text() == "precious"


def put_link(path: Path, elsewhere: Path) -> Path:
    """Puts a link in the place of a file or folder, and what was there elsewhere."""
    victim = elsewhere / "victim"
    if path.exists():
        path.rename(victim)
    else:
        victim.write_text("precious")
        path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(victim)
    return victim


@pytest.fixture
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


LINKED = ["metrics.jsonl", "index.html", "videos", "state", "state/2", ".git"]


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_link_in_a_run_is_refused(name, overwrite, run, elsewhere, problems):
    put_link(run / name, elsewhere)
    before = content(elsewhere)
    with pytest.raises(UserError, match=f"out=.*{name} is a link.*remove it"):
        runs.execute(run, problems[0], {}, {}, overwrite=overwrite)
    assert content(elsewhere) == before


JOB_LINKS = [".jobs.lock", ".1-of-1.lock", "jobs.json", "failed-1-of-1.jsonl"]
JOB_LINKS += ["rows", "parts", "rows/000", "parts/000000"]
BEGUN = [(name, True) for name in JOB_LINKS] + [(".jobs.lock", False)]


@pytest.mark.parametrize("name, begun", BEGUN)
def test_a_link_in_a_folder_of_jobs_is_refused(name, begun, tmp_path, elsewhere):
    out = tmp_path / "out"
    held = jobs.folder.Folder(out, jobs.Shard(1, 1), {})
    if begun:
        held.open({})
    else:
        out.mkdir()
    put_link(out / name, elsewhere)
    before = content(elsewhere)
    with pytest.raises(UserError, match=f"out=.*{name} is a link.*remove it"):
        held.open({})
    assert content(elsewhere) == before


def test_a_link_that_comes_later_is_not_followed(tmp_path, elsewhere):
    out = tmp_path / "out"
    held = jobs.folder.Folder(out, jobs.Shard(1, 1), {})
    held.open({})
    victim = put_link(out / ".1-of-1.lock", elsewhere)
    victim.write_text("precious")
    with pytest.raises(OSError, match="is a link"), held.locked():
        pass
    (out / "failed-1-of-1.jsonl").symlink_to(victim)
    journal.Journal(held).fail(0, 1, "no such file")
    assert (out / "failed-1-of-1.jsonl").read_text().count("no such file") == 1
    with pytest.raises(OSError, match="is a link"):
        files.append_json_lines(out / ".1-of-1.lock", [1])
    assert content(elsewhere) == {"victim": b"precious"}
