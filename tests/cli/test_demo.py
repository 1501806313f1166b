"""`leaps-jax demo`: the command that it shows, and what it refuses."""

import shlex

from command import assert_refused, record

from leaps_jax.data import clips


def test_demo_shows_and_makes_what_its_command_makes(call, root, monkeypatch):
    # its clip comes with the package: to render it takes a third of the start
    monkeypatch.setattr(clips, "_renderer", None)
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
    hints = ["label=", "did you mean jumping jack?", "`leaps-jax demo --help`"]
    assert_refused(call, root, words, hints)
    listed = " ".join(call("demo", "--help").out.split())
    assert "waving both hands" in listed and "jumping jack" in listed
