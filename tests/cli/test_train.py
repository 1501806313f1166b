"""`leaps-jax train`: what it writes and what it refuses."""

import importlib.util
import json

import jax
import numpy as np
import pytest
from command import CLASSES, GOOD, TRAIN, assert_refused, moving, save_clip, words_of

from leaps_jax.models import timesformer
from leaps_jax.zoo import load as loading


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
    if importlib.util.find_spec("tensorboard"):
        given |= {"tensorboard": "{root}/tuning"}
    ran = call(*words_of("train", TRAIN, **given))
    assert ran.code == 0, ran.err
    if "tensorboard" in given:
        (events,) = (root / "tuning").iterdir()
        assert b"loss" in events.read_bytes() and b"accuracy" in events.read_bytes()
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


@pytest.mark.parametrize("case", REFUSED_TRAIN)
def test_train_refuses(call, root, case):
    changed, expected = REFUSED_TRAIN[case]
    words = words_of("train", TRAIN, **{"out": "{root}/refused"} | changed)
    assert_refused(call, root, words, expected)
