"""`leaps-jax evaluate`: what it writes and what it refuses."""

import json

import numpy as np
import pytest
from command import CLASSES, GOOD, assert_refused, record, words_of


def test_evaluate_writes_a_report_and_prints_a_table(call, root, finished):
    folder, _ = finished
    walk = root / "walk"
    walk.mkdir()
    classes = ["walking left", "bend", "walking right"]
    videos = np.random.default_rng(0).random((3, 4, 32, 32, 3), np.float32)
    (walk / "run.json").write_text(json.dumps({"classes": classes}))
    np.savez(walk / "videos.npz", videos=videos, stimuli=videos[:0])
    judges = [f"timesformer_small@{root / name}" for name in ("weights", "walkers")]
    words = ["evaluate", folder, walk, "--judges", *judges]
    words += ["--out", root / "reports" / "one.json"]
    ran = call(*words)
    assert ran.code == 0, ran.err
    for name in ("finished", "walk", "weights", "walkers"):
        assert name in ran.out
    assert "judge 12/12" in ran.err
    report = json.loads((root / "reports" / "one.json").read_text())["runs"]
    own = report[str(folder)]["judges"][judges[0]]
    assert own["stimuli"]["of"] == own["videos"]["of"] == 1
    assert own["videos"]["motion"] == {}
    assert (own["mark"], own["counted"]) == ("self", False)
    assert report[str(folder)]["judges"][judges[1]]["mark"] == "twin"
    run = record(folder)["judges"]["self"]
    assert own["videos"]["seen"] == run["seen"]
    (seen,) = own["saved"]["seen"]
    assert seen in CLASSES, "the mp4 file was read back"
    walked = report[str(walk)]["judges"][judges[1]]
    assert "saved" not in walked
    assert "stimuli" not in walked, "there are none"
    assert walked["counted"], "nothing says what made this run"
    assert walked["videos"]["motion"]["reversed"]["of"] == 2
    rows = walked["videos"]["motion_rows"]
    assert {row["class"] for row in rows} == {classes[0], classes[2]}
    page = (root / "reports" / "one.html").read_text()
    assert str(walk) in page and "image/svg+xml" in page and "image/jpeg" in page
    assert_refused(call, root, words, ["out=", "exists", "--overwrite"])
    (root / "reports" / "one.json").unlink()
    assert_refused(call, root, words, ["out=", "one.html beside it", "--overwrite"])
    assert call(*words, "--overwrite").code == 0


REFUSED_EVALUATE = {
    "no run": ({"runs": "{root}/photos"}, ["run=", "no finished run"]),
    "no folder": ({"runs": "{root}/no"}, ["run=", "no finished run"]),
    "damaged run": ({"runs": "{root}/damaged"}, ["run=", "no finished run"]),
    "unknown judge": ({"judges": "x3d_xs@w"}, ["judges='x3d_xs@w'", "write x3d_xs@"]),
    "out exists": ({"out": "{root}/notes.txt"}, ["out=", "exists", "--overwrite"]),
    "out is a page": ({"out": "{root}/one.html"}, ["out=", "end it in .json"]),
    "out below a file": (
        {"out": "{root}/notes.txt/one.json"},
        ["out=", "notes.txt is a file"],
    ),
}


@pytest.mark.parametrize("case", REFUSED_EVALUATE)
def test_evaluate_refuses(call, root, finished, case):
    changed, expected = REFUSED_EVALUATE[case]
    given = {"judges": GOOD["model"], "out": "{root}/refused.json"}
    run, options = changed.get("runs", "{root}/finished"), dict(changed)
    options.pop("runs", None)
    command, *words = words_of("evaluate", given, **options)
    assert_refused(call, root, [command, run, *words], expected)


def test_evaluate_does_not_replace_a_folder(call, root, finished):
    words = ["evaluate", "{root}/finished", "--judges", GOOD["model"], "--overwrite"]
    assert_refused(call, root, [*words, "--out", "{root}/photos"], ["is a folder"])
