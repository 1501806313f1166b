"""`leaps-jax synthesize`: what it writes and what it refuses."""

import html
import json
import re
import shlex
import threading

import numpy as np
import pytest
from command import (
    CLASSES,
    GOOD,
    TRAIN,
    assert_refused,
    content,
    moving,
    record,
    save_clip,
    words_of,
)

from leaps_jax import objectives
from leaps_jax.data import clips
from leaps_jax.errors import UserError
from leaps_jax.runtime.engine import Engine

mediapy = pytest.importorskip("mediapy")


def test_a_run_from_an_mp4_writes_everything(finished):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "run.json",
        "metrics.jsonl",
        "videos.npz",
        "videos",
        "index.html",
        "comparison.gif",
        "state",
    }
    found = record(folder)
    assert found["status"] == "finished" and found["step"] == 8
    assert found["settings"]["config"]["steps_per_call"] == 4
    _, line = (folder / "metrics.jsonl").read_text().splitlines()  # one a call
    assert json.loads(line)["step"] == 8
    with np.load(folder / "videos.npz") as arrays:
        assert sorted(arrays) == ["labels", "stimuli", "videos"]
        for key in ("videos", "stimuli"):
            assert arrays[key].shape == (1, 4, 32, 32, 3)
            assert arrays[key].dtype == np.float32
            assert 0 <= arrays[key].min() and arrays[key].max() <= 1
        assert arrays["labels"].tolist() == [1]
    names = sorted(path.name for path in (folder / "videos").iterdir())
    assert names == ["000_jack.mp4", "000_jack_stimulus.mp4"]
    assert mediapy.read_video(folder / "videos" / names[0]).shape == (4, 32, 32, 3)
    assert "videos/000_jack.mp4" in (folder / "index.html").read_text()


def test_a_new_run_begins_to_compile_before_clips_are_read(call, monkeypatch):
    begun = threading.Event()

    def read(*_, **__):
        raise UserError(f"read after compiling began: {begun.wait(60)}")

    monkeypatch.setattr(Engine, "begin_compile", lambda *_: begun.set())
    monkeypatch.setattr(clips, "_load_one", read)
    ran = call(*words_of("synthesize", GOOD, out="{root}/overlapped"))
    assert "read after compiling began: True" in ran.err


def test_a_broken_clip_is_told_before_the_work(call, monkeypatch):
    def broken(*_, **__):
        raise UserError("it is broken")

    monkeypatch.setattr(clips, "_load_one", broken)
    monkeypatch.delattr(Engine, "begin_compile")
    ran = call(*words_of("synthesize", GOOD, out="{root}/broken"))
    assert ran.code == 2 and "it is broken" in ran.err


def test_the_same_command_finds_the_run_finished(call, finished, monkeypatch):
    monkeypatch.delattr(Engine, "begin_compile")  # there is nothing to do
    folder, words = finished
    before = content(folder)
    again = call(*words)
    assert again.code == 0 and "is finished" in again.out and not again.err
    assert str(folder / "index.html") in again.out
    assert content(folder) == before


def test_overwrite_starts_again(call, finished, root):
    words = words_of("synthesize", GOOD, out="{root}/again")
    assert call(*words).code == 0
    (root / "again" / "videos.npz").unlink()
    redone = call(*words, "--overwrite")
    assert redone.code == 0 and "is finished" not in redone.out
    for key in ("videos", "stimuli"):
        one, other = (
            np.load(root / name / "videos.npz")[key] for name in ("again", "finished")
        )
        np.testing.assert_array_equal(one, other)


def test_the_page_shows_the_command_that_repeats_the_run(call, root, monkeypatch):
    monkeypatch.chdir(root)
    given = {"model": "timesformer_small@weights", "stimulus": "clip.mp4"}
    given |= {"label": ["jack", "run"], "copies": 2, "stride": 2, "seed": 3}
    given |= {"set": ["steps_per_call=4", "priming=0.5", "flip=true", "margin=1e-7"]}
    words = words_of("synthesize", GOOD, **given, judge=given["model"], out="run")
    assert call(*words).code == 0
    page = (root / "run" / "index.html").read_text()
    (shown,) = re.findall(r'<pre id="command">(.*?)</pre>', page, re.S)
    name, *again = shlex.split(html.unescape(shown).replace("\\\n", " "))
    assert name == "leaps-jax" and again.count("--copies") == 1
    assert not [word for word in again if str(root) in word]
    assert "is finished" in call(*again).out, "another run would be refused"


@pytest.mark.parametrize("method", [m for m in objectives.METHODS if m != "leaps"])
def test_every_method_runs(call, root, method):
    out = root / method
    small_dream = ["steps_per_call=4", "octaves=1"]
    ran = call(*words_of("synthesize", GOOD, method=method, out=out, set=small_dream))
    assert ran.code == 0, ran.err
    assert record(out)["settings"]["method"] == method
    assert np.isfinite(np.load(out / "videos.npz")["videos"]).all()


def test_no_stimulus_where_none_is_needed(call, root):
    given = {"method": "activation_maximization", "stimulus": None, "label": 2}
    ran = call(*words_of("synthesize", GOOD, **given, out="{root}/blind"))
    assert ran.code == 0, ran.err
    assert np.load(root / "blind" / "videos.npz")["stimuli"].shape[0] == 0
    assert "stimulus" not in (root / "blind" / "index.html").read_text()


def test_a_verifier_without_statistics_gets_them_from_the_stimuli(call, root):
    reference = GOOD["model"]
    given = {"verifier": reference, "judge": reference, "out": "{root}/verified"}
    ran = call(*words_of("synthesize", GOOD, **given))
    assert ran.code == 0, ran.err
    assert "estimated from 1 stimuli" in ran.err
    assert "no --verifier" not in ran.err
    assert "diversity" in record(root / "verified")["final"]["raw"]
    roles = {"self", "verifier", reference.format(root=root)}
    assert record(root / "verified")["judges"].keys() == roles


def test_labels_and_short_clips_from_a_tree(call, root):
    save_clip(root / "short tree" / "run" / "a.npz", moving(1, 3))
    save_clip(root / "short tree" / "bend" / "b.npz", moving(2))
    given = {"stimulus": "{root}/short tree", "label": None, "out": "{root}/tree run"}
    words = words_of("synthesize", GOOD, **given)
    assert "--short loop" in call(*words).err
    ran = call(*words, "--short", "loop")
    assert ran.code == 0, ran.err
    assert np.load(root / "tree run" / "videos.npz")["labels"].tolist() == [0, 2]
    assert (root / "tree run" / "videos" / "001_run.mp4").exists()


def test_options_that_are_repeated_add_up(call, root):
    words = words_of("synthesize", GOOD, label=None, steps=2, out="{root}/two")
    words += ["--stimulus", "{root}/clip.mp4", "--label", "jack", "--label", "run"]
    ran = call(*words, "--set", "steps_per_call=2")
    assert ran.code == 0, ran.err
    assert record(root / "two")["classes"] == ["jack", "run"]
    assert len(record(root / "two")["settings"]["stimulus"]) == 2


def test_copies_differ(call, root):
    words = words_of("synthesize", GOOD, copies=2, out="{root}/copies")
    assert call(*words).code == 0
    with np.load(root / "copies" / "videos.npz") as arrays:
        assert arrays["labels"].tolist() == [1, 1]
        assert np.abs(arrays["videos"][0] - arrays["videos"][1]).max() > 0.1
        np.testing.assert_array_equal(*arrays["stimuli"])


# name: what is changed in a good command, words of the one line on stderr
REFUSED = {
    "missing clip": ({"stimulus": "{root}/no.mp4"}, ["stimulus=", "no such file"]),
    "empty clip": ({"stimulus": "{root}/empty.mp4"}, ["stimulus=", "is empty"]),
    "truncated": ({"stimulus": "{root}/truncated.mp4"}, ["stimulus=", "re-encode"]),
    "text": ({"stimulus": "{root}/text.mp4"}, ["stimulus=", "re-encode"]),
    "no clip": ({"stimulus": "{root}/notes.txt"}, ["stimulus=", "accepted: .mp4"]),
    "short clip": ({"stimulus": "{root}/short.npz"}, ["3 frames", "--short loop"]),
    "nan": ({"stimulus": "{root}/nan.npy"}, ["stimulus=", "non-finite", "replace"]),
    "no stimulus": ({"stimulus": None}, ["stimulus: missing", "give a clip"]),
    "nothing to dream of": (
        {"stimulus": None, "method": "deep_dream"},
        ["stimulus: missing", "--method deep_dream"],
    ),
    "unknown short": ({"short": "cut"}, ["short='cut'", "refuse or loop"]),
    "unknown label": ({"label": "jacks"}, ["label='jacks'", "did you mean jack?"]),
    "label out of range": ({"label": 3}, ["label=3", "0 to 2"]),
    "negative label": ({"label": "-1"}, ["label=-1", "0 to 2"]),
    "no label": ({"label": None}, ["label: missing", "name the classes"]),
    "too many labels": (
        {"label": CLASSES, "stimulus": ["{root}/clip.mp4"] * 2},
        ["labels: 3 labels for 2 stimuli", "as many of each"],
    ),
    "unknown class folder": (
        {"label": None, "stimulus": "{root}/strangers"},
        ["label='dive'", "known: bend, jack, run"],
    ),
    "unknown model": (
        {"model": "timesformr_small@{root}/weights"},
        ["model='timesformr_small@", "did you mean timesformer_small"],
    ),
    "unknown weights": (
        {"model": "timesformer_small@{root}/nowhere"},
        ["model='timesformer_small@", "no such file", "write timesformer_small@"],
    ),
    "no weights": (
        {"model": "timesformer_small"},
        ["model='timesformer_small'", "no weights given", "timesformer_small@"],
    ),
    "other weights": (
        {"model": "x3d_xs_small@{root}/weights"},
        ["model='x3d_xs_small@", "weights of timesformer_small", "write timesf"],
    ),
    "missing tensor": (
        {"model": "timesformer_small@{root}/torn"},
        ["model=", "missing: params/block0/missing", "make the checkpoint again"],
    ),
    "not weights": (
        {"model": "slow_r50@{root}/evil.pkl"},
        ["model='slow_r50@", "refused", "give a file"],
    ),
    "unknown verifier": ({"verifier": "x3d@w"}, ["verifier='x3d@w'", "did you mean"]),
    "unknown judge": ({"judge": "x3d_xs@w"}, ["judge='x3d_xs@w'", "write x3d_xs@"]),
    "verifier without statistics": (
        {
            "method": "deep_inversion",
            "stimulus": None,
            "verifier": "timesformer_small@{root}/weights",
        },
        ["verifier='timesformer_small@", "convert --moments", "--stimulus"],
    ),
    "no multiple of the patch": ({"size": 30}, ["size=30", "multiple of 16"]),
    "no frames": ({"frames": 0}, ["frames=0", "at least 1"]),
    "no stride": ({"stride": 0}, ["stride=0", "at least 1"]),
    "few frames for X3D": (
        {"model": "x3d_xs_small@{root}/x3d", "frames": 4},
        ["frames=4", "use more frames"],
    ),
    "another run": (
        {"out": "{root}/finished", "steps": 4, "label": "run"},
        ["out=", "differs in labels, steps)", "--overwrite"],
    ),
    "another parametrization": (
        {"out": "{root}/finished", "parametrization": "pixels"},
        ["out=", "differs in parametrization", "--overwrite"],
    ),
    "unknown parametrization": (
        {"parametrization": "fourrier"},
        ["parametrization='fourrier'", "did you mean fourier"],
    ),
    "parametrization as a setting": (
        {"set": "parametrization=pixels"},
        ["--set parametrization", "write --parametrization"],
    ),
    "blur of a spectrum": (
        {"set": "blur=2"},
        ["blur=2.0", "--parametrization pixels"],
    ),
    "negative view": ({"set": "view_shift=-1"}, ["view_shift=-1", "negative"]),
    "no views": ({"set": "views=0"}, ["views=0", "at least 1"]),
    "out is no run": ({"out": "{root}/photos"}, ["out=", "no run", "choose another"]),
    "out is a file": (
        {"out": "{root}/notes.txt"},
        ["out=", "no run", "choose another"],
    ),
    "out below a file": (
        {"out": "{root}/notes.txt/run"},
        ["out=", "notes.txt is a file", "choose another"],
    ),
    "out is a damaged run": (
        {"out": "{root}/damaged"},
        ["out=", "run.json: is damaged", "choose another"],
    ),
    "no steps": ({"steps": 0}, ["steps=0", "at least 1"]),
    "words for steps": ({"steps": "many"}, ["--steps", "'many'"]),
    "no copies": ({"copies": 0}, ["copies=0", "at least 1"]),
    "huge seed": ({"seed": 2**64}, ["seed=", "must be from 0 to"]),
    "unknown method": ({"method": "leap"}, ["method='leap'", "did you mean leaps"]),
    "set without value": ({"set": "margin"}, ["set='margin'", "key=value"]),
    "unknown set": ({"set": "magin=1"}, ["set='magin=1'", "did you mean margin"]),
    "set of no number": ({"set": "margin=wide"}, ["set='margin=wide'", "a number"]),
    "set of nan": ({"set": "margin=nan"}, ["margin=nan", "finite"]),
    "unknown dtype": ({"dtype": "int8"}, ["dtype=int8", "float32 or bfloat16"]),
    "unknown option": ({"lable": "jack"}, ["--lable", "--help"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_synthesize_refuses(call, root, finished, case):
    changed, expected = REFUSED[case]
    words = words_of("synthesize", GOOD, **{"out": "{root}/refused"} | changed)
    assert_refused(call, root, words, expected)


NOT_OVERWRITTEN = ["photos", "notes.txt", "stranger"]


@pytest.mark.parametrize("out", NOT_OVERWRITTEN)
def test_overwrite_deletes_runs_alone(call, root, out):
    words = words_of("synthesize", GOOD, out="{root}/" + out)
    assert_refused(call, root, [*words, "--overwrite"], ["out=", "no run"])
    words = words_of("train", TRAIN, out="{root}/" + out)
    assert_refused(call, root, [*words, "--overwrite"], ["out=", "no model's folder"])
