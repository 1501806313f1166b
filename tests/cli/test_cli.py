"""The command as a user meets it: what it writes, what it says, what it refuses."""

import dataclasses
import json
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import published
import pytest

from leaps_jax import Model, objectives
from leaps_jax.cli.commands import main
from leaps_jax.models import timesformer
from leaps_jax.runtime.engine import NotFiniteError
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading

mediapy = pytest.importorskip("mediapy")
imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

CLASSES = ("bend", "jack", "run")
COMMANDS = (
    *("models", "convert", "synthesize", "train", "accuracy", "evaluate", "demo"),
    "actions",
)


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def moving(seed: int, frames: int = 12) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (1, 30, 40, 3))
    return np.concatenate([np.roll(noise, t, 2) for t in range(frames)]).astype("uint8")


def save_clip(path: Path, video: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, video=video)
    return path


def small(name: str, classes=CLASSES, **fields) -> Model:
    module, spec = zoo.build(name, classes, **fields)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32),
        zoo.variable_shapes(module),
    )
    return Model(module, variables, spec)


def damage(folder: Path, remove: str) -> None:
    """Leaves one tensor out of a checkpoint, as an interrupted copy might."""
    facts = json.loads((folder / "model.json").read_text())
    facts["shapes"][remove] = [1]
    (folder / "model.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of models and clips, and compiled steps kept from test to test."""
    root = tmp_path_factory.mktemp("cli")
    kept = str(tmp_path_factory.mktemp("compiled"))
    before = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", kept)
        jax.config.update("jax_compilation_cache_dir", kept)
        yield _filled(root)
    jax.config.update("jax_compilation_cache_dir", before)


def _filled(root: Path) -> Path:
    shape = {"frames": 4, "size": 32, "depth": 1, "width": 48, "stem": (4, 8)}
    model = small("timesformer_small", **shape)
    loading.save(model, root / "weights")
    loading.save(model, root / "torn")
    damage(root / "torn", "params/block0/missing")
    x3d = {"depths": (1, 1, 1, 1)}
    loading.save(small("x3d_xs_small", **x3d), root / "x3d")

    mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())
    mediapy.write_video(root / "clip.mp4", moving(0), fps=25, qp=10)
    content = (root / "clip.mp4").read_bytes()
    (root / "truncated.mp4").write_bytes(content[: len(content) // 2])
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("<html>not found</html>")
    (root / "notes.txt").write_text("not a clip")
    np.save(root / "nan.npy", np.full((12, 30, 40, 3), np.nan, np.float32))
    save_clip(root / "short.npz", moving(0, 3))
    for number, label in enumerate(CLASSES):
        for clip in range(2):
            video = moving(2 * number + clip)
            save_clip(root / "tree" / label / f"{clip}.npz", video)
    save_clip(root / "strangers" / "dive" / "0.npz", moving(9))
    walkers = small("timesformer_small", ("walking left", "walking right"), **shape)
    loading.save(walkers, root / "walkers")
    loading.save(_permuted(model, (2, 0, 1)), root / "permuted")
    (root / "no clips").mkdir()
    (root / "photos").mkdir()
    (root / "photos" / "cat.png").write_text("precious")
    (root / "stranger" / "src").mkdir(parents=True)
    (root / "stranger" / "run.json").write_text("{}")
    (root / "damaged").mkdir()
    (root / "damaged" / "run.json").write_text("[")
    evil = {"blobs": {"w": np.zeros(3), "x": RunsCode(root / "proof")}}
    (root / "evil.pkl").write_bytes(pickle.dumps(evil))
    return root


def _permuted(model: Model, order) -> Model:
    """The same model with its classes in another order."""
    params = dict(model.variables["params"])
    params["classifier"] = {
        name: leaf[..., list(order)] for name, leaf in params["classifier"].items()
    }
    classes = tuple(model.spec.classes[i] for i in order)
    spec = dataclasses.replace(model.spec, classes=classes)
    return dataclasses.replace(model, variables={"params": params}, spec=spec)


@pytest.fixture
def call(root, capsys):
    """Runs the command; words may hold `{root}` for the folder of inputs."""

    def run(*words):
        capsys.readouterr()
        try:
            code = main([str(word).format(root=root) for word in words])
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def words_of(command: str, given: dict, **changed) -> list:
    """Turns {"steps": 8} into words; None takes an option away."""
    words = [command]
    for name, value in (given | changed).items():
        if value is not None:
            many = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name.replace('_', '-')}", *many]
    return words


GOOD = {
    "model": "timesformer_small@{root}/weights",
    "stimulus": "{root}/clip.mp4",
    "label": "jack",
    "out": "{root}/out",
    "steps": 8,
    "set": "steps_per_call=4",
    "preview_every": 0,
}
TRAIN = {
    "model": "timesformer_small",
    "data": "{root}/tree",
    "out": "{root}/trained",
    "steps": 4,
    "batch": jax.device_count(),
    "frames": 2,
    "size": 16,
}


def content(folder: Path) -> dict:
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
    }


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


# ---- what works


def test_models_as_json_and_as_a_table(call):
    rows = json.loads(call("models", "--json").out)
    assert [row["name"] for row in rows] == zoo.names()
    wanted = {"name", "parameters", "gmacs", "taps", "namings", "licence"}
    assert all(wanted <= row.keys() for row in rows)
    table = call("models")
    assert table.code == 0 and not table.err
    for name in zoo.names():
        assert any(line.split()[0] == name for line in table.out.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(call, command):
    shown = call(command, "--help")
    assert shown.code == 0
    assert f"leaps-jax {command} " in shown.out.partition("example:")[2]


@pytest.fixture(scope="module")
def finished(root):
    """One run from an mp4, the words that made it and what stood on the terminal."""
    words = [
        str(word).format(root=root)
        for word in words_of("synthesize", GOOD, out="{root}/finished")
    ]
    assert main(words) == 0
    return root / "finished", words


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


def test_the_same_command_finds_the_run_finished(call, finished):
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


def test_copies_differ(call, root):
    words = words_of("synthesize", GOOD, copies=2, out="{root}/copies")
    assert call(*words).code == 0
    with np.load(root / "copies" / "videos.npz") as arrays:
        assert arrays["labels"].tolist() == [1, 1]
        assert np.abs(arrays["videos"][0] - arrays["videos"][1]).max() > 0.1
        np.testing.assert_array_equal(*arrays["stimuli"])


def test_train_then_synthesize(call, root, monkeypatch):
    fields = timesformer.VARIANTS["timesformer_small"]
    monkeypatch.setitem(fields, "depth", 1)  # of six blocks: seconds, not a minute
    ran = call(*words_of("train", TRAIN, eval_data="{root}/tree"))
    assert ran.code == 0, ran.err
    assert "step 4: accuracy" in ran.err
    reference = f"timesformer_small@{root / 'trained'}"
    assert f"use it as --model {reference}" in ran.out
    facts = json.loads((root / "trained" / "model.json").read_text())
    assert facts["extra"]["recipe"]["steps"] == 4
    assert tuple(facts["spec"]["classes"]) == CLASSES
    given = {"model": reference, "out": "{root}/from trained", "steps": 4}
    ran = call(*words_of("synthesize", GOOD, **given))
    assert ran.code == 0, ran.err
    assert np.load(root / "from trained" / "videos.npz")["videos"].shape[1] == 2


def test_train_starts_from_weights(call, root):
    """Other classes get a new classifier; the rest of the network is the same."""
    for label in ("dive", "hop"):
        save_clip(root / "sports" / label / "0.npz", moving(len(label)))
    given = {"model": None, "frames": None, "size": None, "learning_rate": 0}
    given |= {"data": "{root}/sports", "out": "{root}/tuned", "steps": 1}
    given |= {"from": "timesformer_small@{root}/weights"}
    ran = call(*words_of("train", TRAIN, **given))
    assert ran.code == 0, ran.err
    old, new = (
        loading.load_model(f"timesformer_small@{root / name}")
        for name in ("weights", "tuned")
    )
    assert new.spec.classes == ("dive", "hop")
    assert new.moments is not None
    assert (new.spec.frames, new.spec.size) == (4, 32)
    one, other = (dict(m.variables["params"]) for m in (old, new))
    assert other.pop("classifier")["bias"].shape == (2,)
    one.pop("classifier")
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_accuracy_as_json_and_as_a_table(call, root):
    words = ["accuracy", "--data", "{root}/tree", "--model"]
    ran = call(*words, "timesformer_small@{root}/weights", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["clips"] == 6 and found["reversed_pairs"] == {}
    assert found["classes"].keys() == set(CLASSES)
    mean = np.mean(list(found["classes"].values()))  # of two clips each
    assert found["top1"] == pytest.approx(mean) and 0 <= mean <= 1
    permuted = call(*words, "timesformer_small@{root}/permuted", "--json")
    assert json.loads(permuted.out) == found
    table = call(*words, "timesformer_small@{root}/weights").out
    assert all(name in table for name in CLASSES) and "all 6 clips" in table


def test_train_against_attacks_says_what_withstands_them(call, root):
    words = words_of("train", TRAIN, eval_data="{root}/tree", robust=2)
    words[words.index("{root}/trained")] = "{root}/robust"
    ran = call(*words, "--attack-steps", 1)
    assert ran.code == 0, ran.err
    assert "under attack" in ran.err
    extra = json.loads((root / "robust" / "model.json").read_text())["extra"]
    assert extra["recipe"]["attack"] == {
        "radius": 2.0,
        "steps": 1,
        "step": 0.7,
        "start": 0.5,
        "restarts": 1,
    }
    assert 0 <= extra["robust_accuracy"] <= 1
    words = ["accuracy", "--data", "{root}/tree", "--json", "--attack", 1e-6]
    words += ["--attack-steps", 1, "--attack-restarts", 1, "--attack-clips", 3]
    ran = call(*words, "--model", "timesformer_small@{root}/robust")
    assert ran.code == 0, ran.err
    attack = json.loads(ran.out)["attack"]
    assert (attack["radius"], attack["steps"], attack["clips"]) == (1e-6, 1, 3)
    refused = call("accuracy", *words[1:4], "--model", "a@b", "--attack", 0)
    assert refused.code == 2 and "attack=0: must be a positive radius" in refused.err


def test_accuracy_refuses_classes_of_others(call, root):
    words = ["accuracy", "--model", "timesformer_small@{root}/weights", "--data"]
    words.append("{root}/strangers")
    assert_refused(call, root, words, ["data=", "'dive'", "rename or remove"])


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
    truth = walked["videos"]["truth"]
    assert {row["class"] for row in truth} == {classes[0], classes[2]}
    page = (root / "reports" / "one.html").read_text()
    assert str(walk) in page and "<svg" in page and "<img" in page
    assert_refused(call, root, words, ["out=", "exists", "--overwrite"])
    (root / "reports" / "one.json").unlink()
    assert_refused(call, root, words, ["out=", "one.html beside it", "--overwrite"])
    assert call(*words, "--overwrite").code == 0


def test_demo_shows_and_makes_what_its_command_makes(call, root):
    ran = call("demo", "--steps", 2, "--out", "{root}/demo")
    assert ran.code == 0, ran.err
    names = {path.name for path in (root / "demo").iterdir()}
    assert {"comparison.gif", "index.html"} <= names
    (command,) = [x for x in ran.err.splitlines() if x.startswith("leaps-jax synth")]
    assert call(*shlex.split(command)[1:]).out.startswith(
        f"{root / 'demo'} is finished"
    )
    assert record(root / "demo")["classes"] == ["waving both hands"]


def test_demo_refuses_what_is_no_action(call, root):
    words = ["demo", "--label", "jumping jacks", "--out", "{root}/refused"]
    assert_refused(call, root, words, ["label=", "did you mean jumping jack?"])


def test_convert_writes_a_checkpoint(call, root):
    from parity import weights

    published.save(root / "X3D_XS.pyth", weights("ptv_x3d_xs"), "model_state")
    words = ["convert", "x3d_xs", "{root}/X3D_XS.pyth", "{root}/converted"]
    ran = call(*words)
    assert ran.code == 0, ran.err
    assert f"--model x3d_xs@{root / 'converted'}" in ran.out
    model = loading.load_model(f"x3d_xs@{root / 'converted'}")
    assert model.spec.classes == zoo.KINETICS_400
    assert "out=" in call(*words).err, "a second time"


def test_convert_finds_the_model(call, root):
    save = pytest.importorskip("safetensors.numpy").save_file
    from parity import weights

    for golden in ("ptv_c2d_r50", "ptv_x3d_xs"):
        save(weights(golden), root / f"{golden}.safetensors")
    ran = call("convert", "{root}/ptv_c2d_r50.safetensors", "{root}/c2d")
    assert ran.code == 0, ran.err
    assert f"--model c2d_r50@{root / 'c2d'}" in ran.out
    spec = loading.load_model(f"c2d_r50@{root / 'c2d'}").spec
    assert spec.source == f"{root / 'ptv_c2d_r50.safetensors'} (pytorchvideo_pooled)"
    ran = call("convert", "{root}/ptv_x3d_xs.safetensors", "{root}/no")
    assert ran.code == 2 and "x3d_xs or x3d_s or x3d_m" in ran.err


# ---- what is refused

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
        ["out=", "run.json is damaged", "--overwrite"],
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
NOT_OVERWRITTEN = ["photos", "notes.txt", "stranger"]
REFUSED_TRAIN = {
    "out exists": ({"out": "{root}/weights"}, ["out=", "exists", "--overwrite"]),
    "out below a file": (
        {"out": "{root}/notes.txt/weights"},
        ["out=", "notes.txt is a file", "choose another"],
    ),
    "no data": ({"data": "{root}/no"}, ["data=", "no such file or folder"]),
    "empty data": ({"data": "{root}/no clips"}, ["data=", "no clips; accepted: .mp4"]),
    "no classes": ({"data": "{root}/clip.mp4"}, ["data=", "<class>/<clip>"]),
    "other classes": (
        {"eval_data": "{root}/strangers"},
        ["eval-data=", "'dive'", "rename or remove", "known: bend, jack, run"],
    ),
    "unknown model": (
        {"model": "timesformer_smal"},
        ["model='timesformer_smal'", "did you mean timesformer_small"],
    ),
    "no steps": ({"steps": 0}, ["steps=0", "at least 1"]),
    "no size": ({"size": 0}, ["size=0", "at least 1"]),
    "no frames": ({"frames": 0}, ["frames=0", "at least 1"]),
    "no multiple of the patch": ({"size": 30}, ["size=30", "multiple of 16"]),
    "negative seed": ({"seed": -1}, ["seed=-1", "must be from 0"]),
    "unknown dtype": ({"dtype": "int8"}, ["dtype=int8", "float32 or bfloat16"]),
}
REFUSED_TRAIN |= {
    "negative radius": ({"robust": -3}, ["robust=-3", "positive radius"]),
    "infinite radius": ({"robust": "inf"}, ["robust=inf", "positive radius"]),
    "attack without radius": (
        {"attack_steps": 3},
        ["attack-steps", "is for --robust"],
    ),
    "warm-up without radius": (
        {"attack_warmup": 0.1},
        ["attack-warmup", "is for --robust"],
    ),
    "attack of no steps": (
        {"robust": 3, "attack_steps": 0},
        ["attack-steps=0", "at least 1"],
    ),
    "long warm-up": (
        {"robust": 3, "attack_warmup": 2},
        ["attack_warmup=2", "share from 0 to 1"],
    ),
    "two starts": (
        {"from": "timesformer_small@{root}/weights"},
        ["--from", "not allowed with", "--model", "--help"],
    ),
    "no start": ({"model": None}, ["--model --from", "required"]),
    "start that is not there": (
        {"model": None, "from": "timesformer_small@{root}/nowhere"},
        ["from='timesformer_small@", "no such file"],
    ),
    "start of another size": (
        {"model": None, "from": "timesformer_small@{root}/weights", "size": 64},
        ["size=64", "made for 4 frames of 32 pixels"],
    ),
    "mirrored actions": (
        {"data": "synthetic_actions", "flip": []},
        ["flip", "synthetic_actions", "leave it out"],
    ),
    "mirrored stills": ({"data": "synthetic_stills", "flip": []}, ["flip"]),
    "hints of clips": ({"hints": 1}, ["hints=1.0", "synthetic_actions"]),
}
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
REFUSED_CONVERT = {
    "unknown model": (["slow_50", "{root}/evil.pkl"], ["model='slow_50'", "slow_r50"]),
    "no file": (["slow_r50", "{root}/no.pth"], ["source=", "no such file"]),
    "empty file": (["slow_r50", "{root}/empty.mp4"], ["source=", "is empty"]),
    "runs code": (["slow_r50", "{root}/evil.pkl"], ["source=", "refused", "give a"]),
    "no weights": (["slow_r50", "{root}/notes.txt"], ["source=", "must be one of"]),
}


def assert_refused(call, root, words, expected):
    before = content(root)
    refused = call(*words)
    assert refused.code == 2
    (line,) = refused.err.splitlines()
    assert line.startswith("leaps-jax") and "error: " in line
    for part in expected:
        assert part in line
    assert not refused.out
    assert content(root) == before, "something was written"


@pytest.mark.parametrize("case", REFUSED)
def test_synthesize_refuses(call, root, finished, case):
    changed, expected = REFUSED[case]
    words = words_of("synthesize", GOOD, **{"out": "{root}/refused"} | changed)
    assert_refused(call, root, words, expected)


@pytest.mark.parametrize("out", NOT_OVERWRITTEN)
def test_overwrite_deletes_runs_alone(call, root, out):
    words = words_of("synthesize", GOOD, out="{root}/" + out)
    assert_refused(call, root, [*words, "--overwrite"], ["out=", "no run"])
    words = words_of("train", TRAIN, out="{root}/" + out)
    assert_refused(call, root, [*words, "--overwrite"], ["out=", "no model's folder"])


@pytest.mark.parametrize("case", REFUSED_TRAIN)
def test_train_refuses(call, root, case):
    changed, expected = REFUSED_TRAIN[case]
    words = words_of("train", TRAIN, **{"out": "{root}/refused"} | changed)
    assert_refused(call, root, words, expected)


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


@pytest.mark.parametrize("case", REFUSED_CONVERT)
def test_convert_refuses(call, root, case):
    words, expected = REFUSED_CONVERT[case]
    assert_refused(call, root, ["convert", *words, "{root}/refused"], expected)
    assert not (root / "proof").exists()


def test_convert_refuses_an_out_that_exists(call, root):
    words = ["convert", "slow_r50", "{root}/evil.pkl", "{root}/weights"]
    assert_refused(call, root, words, ["out=", "exists", "--overwrite"])


FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 B")
BENCH = {"model": "timesformer_small@{root}/weights", "steps": 1}
ACCURACY = {"model": "timesformer_small@{root}/weights", "data": "{root}/tree"}
TOO_LARGE = {
    "train": (TRAIN, "leaps_jax.training.train", "batch="),
    "accuracy": (ACCURACY | {"batch": 6}, "leaps_jax.training.evaluate", "batch=6"),
    "bench": (BENCH | {"batch": 7}, "leaps_jax.bench.measure", "batch=7"),
    "synthesize": (GOOD | {"copies": 3}, "leaps_jax.runs.folder.execute", "copies=3"),
}


def assert_too_large(ran, expected):
    """One line, after those that tell what was read."""
    assert ran.code == 2 and "Traceback" not in ran.err and not ran.out
    line = ran.err.splitlines()[-1]
    assert line.startswith("leaps-jax: error: ")
    for part in ("does not fit the memory", "lower it", *expected):
        assert part in line


@pytest.mark.parametrize(
    "error",
    [FULL, RuntimeError("INTERNAL: CUDA_ERROR: out of memory"), MemoryError()],
    ids=["XLA", "CUDA", "Python"],
)
@pytest.mark.parametrize("command", TOO_LARGE)
def test_what_does_not_fit_the_memory(call, root, monkeypatch, command, error):
    given, function, told = TOO_LARGE[command]

    def full(*_, **__):
        raise error

    monkeypatch.setattr(function, full)
    out = {"out": "{root}/too large"} if "out" in given else {}
    words = words_of(command, given, **out)
    assert_too_large(call(*words), [told])


def test_memory_that_no_argument_sets(call, root, finished, monkeypatch):
    def full(*_, **__):
        raise FULL

    monkeypatch.setattr("leaps_jax.zoo.load.load_model", full)
    judged = ["evaluate", finished[0], "--judges", "vivit_small@actions", "--out"]
    for words in ([*judged, "{root}/full.json"], ["demo", "--out", "{root}/full"]):
        ran = call(*words)
        assert ran.code == 2 and "Traceback" not in ran.err
        assert "error: memory: does not suffice; end" in ran.err.splitlines()[-1]


def test_an_absurd_batch(call, root):
    words = words_of("synthesize", GOOD, copies=10**9, out="{root}/absurd")
    assert_too_large(call(*words), ["copies=1000000000"])
    words = words_of("train", TRAIN, batch=10**12, out="{root}/absurd")
    assert_too_large(call(*words), ["batch=1000000000000"])
    words = words_of("bench", BENCH, batch=10**10)
    assert_too_large(call(*words), ["batch=10000000000", "--remat"])


def test_a_table_of_which_nothing_fits(call, root, monkeypatch):
    def full(*_, **__):
        raise FULL

    monkeypatch.setattr("leaps_jax.runtime.engine.Engine.compile", full)
    row = f"timesformer_small@{root}/weights,,{root}/clip.mp4,jack,,\n"
    (root / "large.csv").write_text("model,verifier,stimulus,label,copies,seed\n" + row)
    words = ["synthesize", "--jobs", "{root}/large.csv", "--out", "{root}/large"]
    assert_too_large(call(*words), ["batch=8", "--remat"])


def test_a_loss_that_is_not_finite_fails(call, monkeypatch):
    def broken(*_, **__):
        raise NotFiniteError("step 3: the loss is nan", None)

    monkeypatch.setattr("leaps_jax.runs.folder.execute", broken)
    ran = call(*words_of("synthesize", GOOD))
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == "leaps-jax: failed: step 3: the loss is nan"


def test_other_errors_keep_their_trace(call, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such axis")

    monkeypatch.setattr("leaps_jax.bench.measure", broken)
    with pytest.raises(RuntimeError, match="no such axis"):
        call(*words_of("bench", BENCH, batch=1))


@pytest.mark.parametrize("words", [[], ["invert"], ["synthesize"], ["train", "--x"]])
def test_words_that_are_no_command(call, root, words):
    assert_refused(call, root, words, ["--help"])


def test_the_command_in_a_process_of_its_own(root):
    words = words_of("synthesize", GOOD, label="jacks", out="{root}/refused")
    words = [str(word).format(root=root) for word in words]
    ran = subprocess.run(
        [sys.executable, "-m", "leaps_jax", *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2 and not ran.stdout
    (line,) = ran.stderr.splitlines()
    assert "label='jacks'" in line and "did you mean jack?" in line
