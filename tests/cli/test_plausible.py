"""What a user could well type, and machines that lack something: a line each."""

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import BENCH, GOOD, TRAIN, assert_refused, words_of

from leaps_jax.cli.main import main
from leaps_jax.runs import folder as runs
from leaps_jax.runs import results
from leaps_jax.zoo import checkpoints

LONG = "{root}/" + "x" * 300
ACTIONS = {"out": "{root}/refused"}
RANDOM = {"model": "slow_r50_tiny", "batch": 1, "steps": 1}
#: Of one case each: the command, its words, and parts of the line.
REFUSED = {
    "long out of synthesize": ("synthesize", GOOD | {"out": LONG}, ["File name too"]),
    "long out of train": ("train", TRAIN | {"out": LONG}, ["out=", "File name too"]),
    "long out of actions": ("actions", {"out": LONG}, ["out=", "File name too long"]),
    "long weights": (
        "synthesize",
        GOOD | {"model": f"x3d_xs@{LONG}"},
        ["model=", "File name too long"],
    ),
    "a user who is not there": (
        "synthesize",
        GOOD | {"model": "x3d_xs@~nosuchuser/w"},
        ["model='x3d_xs@~nosuchuser/w'", "no such home folder; write the whole path"],
    ),
    "a negative rate": (
        "train",
        TRAIN | {"learning_rate": -1},
        ["learning_rate=-1.0: must be finite and not negative"],
    ),
    "an infinite decay": (
        "train",
        TRAIN | {"weight_decay": "inf"},
        ["weight_decay=inf: must be finite"],
    ),
    "a verifier of bench": (
        "bench",
        RANDOM | {"verifier": "x3d"},
        ["verifier='x3d': not in the zoo; did you mean x3d_s"],
    ),
    "a size of the verifier": (
        "bench",
        RANDOM | {"verifier": "slow_r50_tiny", "verifier_size": 0},
        ["verifier='slow_r50_tiny': size=0: must be at least 1"],
    ),
    "a size of bench": ("bench", RANDOM | {"size": 10**6}, ["size=1000000: must be"]),
    "a size of actions": (
        "actions",
        ACTIONS | {"size": 10**6},
        ["size=1000000", "4096"],
    ),
    "a clip of actions": (
        "actions",
        ACTIONS | {"size": 4096, "frames": 999},
        ["size=4096", "of memory", "lower it, or --frames"],
    ),
    "a clip of synthesize": (
        "synthesize",
        GOOD | {"size": 4096, "frames": 4096},
        ["frames=4096 size=4096: a clip may have"],
    ),
}
SETTINGS = {
    "octaves=20": "octaves=20: more than the 8 steps",
    "octaves=8 octave_scale=9": "octaves=8 octave_scale=9.0: the smallest would have",
    "roll=1e300": "roll=1e+300: must be at most 1",
    "roll=nan": "roll=nan: must be a finite number",
    "steps=" + "9" * 30: ": must be at most 1e+09",
    "steps=" + "9" * 5000: "is not a whole number",
    "temporal_roll=" + "9" * 30: ": must be at most 65536",
    "views=1000000000": "views=1000000000: must be at most 1000",
    "view_scale=1e300": "view_scale=1e+300: must be at most 10",
    "blur=1e300": "blur=1e+300: must be at most 1000",
    "learning_rate=1e300": "learning_rate=1e+300: must be at most 1e+30",
    "temporal_decay=-1e300": "temporal_decay=-1e+300: must be at most 1e+30",
    "priming_cells=10000": "priming_cells=10000: must be at most 4096",
}
for _set, _said in SETTINGS.items():
    words = GOOD | {"set": _set.split()}
    REFUSED[_set[:40]] = ("synthesize", words, [_said])


@pytest.mark.parametrize("case", REFUSED)
def test_a_line_says_what_is_wrong(call, root, case):
    command, given, expected = REFUSED[case]
    assert_refused(call, root, words_of(command, given), expected)


def test_long_names_of_other_files(call, root):
    judged = ["evaluate", "{root}/photos", "--judges", GOOD["model"], "--out"]
    assert_refused(call, root, [*judged, LONG], ["out=", "File name too long"])
    assert_refused(call, root, [*judged, "/"], ["out='/': is a folder"])
    words = ["convert", "x3d_xs", "{root}/evil.pkl", LONG]
    assert_refused(call, root, words, ["out=", "File name too long"])
    words = ["convert", "x3d_xs", LONG, "{root}/refused"]
    assert_refused(call, root, words, ["source=", "File name too long"])


def test_a_table_that_can_be_read_once(call, root, tmp_path):
    """As of `--jobs <(cat jobs.csv)`; nobody waits for what writes it."""
    os.mkfifo(tmp_path / "pipe")
    words = ["synthesize", "--jobs", tmp_path / "pipe", "--out", "{root}/refused"]
    assert_refused(call, root, words, ["is no regular file", "save it to a file"])


def test_one_row_does_not_end_a_table(call, root, tmp_path, monkeypatch):
    table, good = tmp_path / "jobs.csv", GOOD["model"].format(root=root)
    table.write_text(f"model,label\nx3d_xs@~nosuchuser/w,0\n{good},jack\n")
    words = ["synthesize", "--jobs", table, "--out", tmp_path / "out", "--steps", 1]
    ran = call(*words, "--method", "activation_maximization", "--batch", 1)
    assert ran.code == 1 and "results: 1 of 2 rows" in ran.out
    assert "line 2: model='x3d_xs@~nosuchuser/w': " in ran.err


def test_a_loss_of_bench_that_is_not_finite(call, monkeypatch):
    numpy = SimpleNamespace(**vars(np) | {"isfinite": lambda total: total < 0})
    monkeypatch.setattr("leaps_jax.bench.np", numpy)
    ran = call(*words_of("bench", BENCH, batch=1))
    assert ran.code == 2
    last = ran.err.splitlines()[-1]
    assert "the loss is not finite; give more frames or a larger size" in last


# Machines.


def test_a_user_without_a_home(call, monkeypatch, root):
    def unknown(_):
        raise KeyError("getpwuid(): uid not found")

    for name in (
        "HOME",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "JAX_COMPILATION_CACHE_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    ran = call("models", "--json")
    assert ran.code == 0 and len(json.loads(ran.out)) > 10
    assert len(ran.err.splitlines()) <= 1
    ran = call(*words_of("synthesize", GOOD, model="x3d_xs@~/w"))
    assert ran.code == 2 and "no such home folder" in ran.err.splitlines()[-1]
    ran = call(*words_of("synthesize", GOOD, stimulus="~/clip.mp4"))
    assert ran.code == 2 and "no such file or folder" in ran.err.splitlines()[-1]


@pytest.mark.parametrize("name", ["café", os.fsdecode(b"caf\xe9")])
def test_a_terminal_without_the_letters_of_a_name(root, finished, tmp_path, name):
    """A finished run is named again; nothing is computed."""
    folder, words = finished
    shutil.copytree(folder, tmp_path / name)
    words[words.index(str(folder))] = str(tmp_path / name)
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "leaps_jax", *words],
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
            capture_output=True,
        )
    finally:
        words[words.index(str(tmp_path / name))] = str(folder)
    assert ran.returncode == 0, ran.stderr
    assert b"results: " in ran.stdout and ascii(name)[1:-1].encode() in ran.stdout


def test_a_report_of_a_run_whose_name_is_not_utf_8(finished, root, tmp_path):
    run = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(finished[0], run)
    judge, out = GOOD["model"].format(root=root), tmp_path / "one.json"
    assert main(["evaluate", str(run), "--judges", judge, "--out", str(out)]) == 0
    assert "caf?" in (tmp_path / "one.html").read_text()


def test_a_name_with_markup_stays_text(call, finished, root, tmp_path):
    """Tables are drawn by Rich, which would take [/red] for the end of a colour."""
    name = "[red]run[/blue]"
    shutil.copytree(finished[0], tmp_path / name)
    words = ["evaluate", tmp_path / name, "--judges", GOOD["model"]]
    ran = call(*words, "--out", tmp_path / "one.json")
    assert ran.code == 0 and name in ran.out


def test_a_command_with_a_name_that_is_not_utf_8_is_kept(tmp_path):
    facts = {"extra": {"command": "train --data caf\udce9"}}
    assert json.loads(checkpoints._json(facts)) == facts
    assert "名".encode() in checkpoints._json({"classes": ["名"]})


# Runs that something has damaged.

DAMAGED = {
    "a list": ([1], "all of it=[1]: must be"),
    "null": (None, "all of it=None: must be"),
    "no classes": ({"classes": ...}, "classes: is missing"),
    "classes are null": ({"classes": None}, "classes=None: must be a valid list"),
    "classes are text": ({"classes": "jack"}, "classes='jack': must be a valid list"),
    "a class is a number": ({"classes": [1]}, "classes[0]=1: must be a valid string"),
    "a class is no text": ({"classes": ["\ud800"]}, "classes[0]='\\ud800': must be"),
    "more classes": ({"classes": ["jack", "run"]}, "1 videos, and run.json has 2"),
    "settings are a list": ({"settings": [1]}, "settings=[1]: must be"),
    "settings are null": ({"settings": None}, "settings=None: must be"),
    "a model is a number": ({"settings": {"model": 3}}, "settings.model=3: must be"),
    "an identity is a list": ({"identity": [1]}, "identity=[1]: must be"),
}


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def assert_no_results(copied, *expected):
    with pytest.raises(runs.UserError) as error:
        results.read(copied)
    line = str(error.value)
    assert line.startswith(f"run={str(copied)!r}: ") and line.isprintable()
    for part in expected:
        assert part in line


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_record(copied, case):
    changes, expected = DAMAGED[case]
    path = copied / "run.json"
    record = changes
    if isinstance(changes, dict):
        record = json.loads(path.read_text()) | changes
        record = {key: value for key, value in record.items() if value is not ...}
    path.write_text(json.dumps(record))
    assert_no_results(copied, expected)


@pytest.mark.parametrize("content", [b"[", b"[" * 10**5, b"\xff", b""])
def test_a_record_that_is_no_json(copied, content):
    (copied / "run.json").write_bytes(content)
    assert_no_results(copied, "run.json: is damaged", "so it is no finished run")


ARRAYS = {
    "two axes": ({"videos": np.zeros((2, 2), np.float32)}, "must be (n, t, h, w, 3)"),
    "one number": ({"videos": np.float32(0)}, "must be (n, t, h, w, 3)"),
    "four channels": ({"videos": np.zeros((1, 2, 4, 4, 4), "f4")}, "must be (n, t"),
    "none": ({"videos": np.zeros((0, 2, 4, 4, 3), "f4")}, "must be (n, t, h, w, 3)"),
    "whole numbers": ({"videos": np.zeros((1, 2, 4, 4, 3), "u1")}, "must be float"),
    "text": ({"videos": np.array(["a"])}, "must be float"),
    "objects": ({"videos": np.array([{}], object)}, "is damaged"),
    "complex numbers": ({"videos": np.zeros((1, 2, 4, 4, 3), "c8")}, "must be float"),
    "nan": ({"videos": np.full((1, 2, 4, 4, 3), np.nan, "f4")}, "are not in [0, 1]"),
    "too bright": ({"videos": np.full((1, 2, 4, 4, 3), 7, "f4")}, "are not in [0, 1]"),
    "other stimuli": ({"stimuli": np.zeros((3, 2), "f4")}, "must be that of the"),
    "no stimuli": ({"stimuli": np.float32(0)}, "must be that of the videos"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_damaged_arrays(copied, case):
    changes, expected = ARRAYS[case]
    with np.load(copied / "videos.npz") as file:
        arrays = dict(file) | changes
    np.savez(copied / "videos.npz", **arrays)
    assert_no_results(copied, expected)


def test_damaged_archives(copied, monkeypatch):
    whole = (copied / "videos.npz").read_bytes()
    for content in (b"", b"PK\3\4junk", whole[:2000]):
        (copied / "videos.npz").write_bytes(content)
        assert_no_results(copied, "videos.npz: is damaged", "so it is no finished run")
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    (copied / "videos.npz").write_bytes(changed)
    assert_no_results(copied, "videos.npz: is damaged")
    (copied / "videos.npz").write_bytes(whole)
    monkeypatch.setattr("leaps_jax.data.limits.STORED", 1000)
    assert_no_results(copied, "the most is")


def test_evaluate_says_so(call, root, copied):
    (copied / "run.json").write_text("[1]")
    words = ["evaluate", copied, "--judges", GOOD["model"], "--out", "{root}/no.json"]
    assert_refused(call, root, words, ["run=", "all of it=[1]"])


def test_a_run_with_a_strange_record_is_not_gone_on_with(
    call, root, finished, tmp_path
):
    folder, words = finished
    shutil.copytree(folder, tmp_path / "run")
    words = [str(tmp_path / "run") if w == str(folder) else w for w in words]
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    for change, expected in (
        ({"step": "8"}, "run.json: step='8': must be a valid integer"),
        ({"status": 3}, "run.json: status=3: must be"),
        ({"judges": None}, "run.json: judges=None: must be"),
        ({"judges": {"self": {}}}, "run.json: judges.self.model: is missing"),
    ):
        path.write_text(json.dumps(record | change))
        assert_refused(call, root, words, ["out=", expected, "choose another folder"])
    path.write_text(json.dumps(record | {"of a later version": [1]}))
    assert call(*words).code == 0
