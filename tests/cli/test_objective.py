"""`leaps-jax synthesize --objective`: recorded, shown, resumed, refused in one line."""

import html
import re
import shlex
import shutil

import numpy as np
import pytest
from command import GOOD, assert_refused, record, words_of

mediapy = pytest.importorskip("mediapy")

BLIND = {"stimulus": None, "label": None, "objective": "channel:0:2"}


def test_a_channel_is_recorded_shown_and_repeated(call, root, monkeypatch):
    monkeypatch.chdir(root)
    given = BLIND | {"model": "timesformer_small@weights", "out": "run of channel"}
    words = words_of("synthesize", GOOD, **given)
    ran = call(*words)
    assert ran.code == 0, ran.err
    assert "sees 1 video as: " in ran.out and "as their class" not in ran.out
    folder = root / "run of channel"
    found = record(folder)
    looking = found["settings"]["objective"]
    # by the name of the tap, which a number means only for one model
    assert re.fullmatch(r"channel:[a-z]\S+:2", looking)
    assert found["settings"]["method"] is None and found["classes"] == [looking]
    assert looking in found["final"]["raw"] and "priming" not in found["final"]["raw"]
    assert np.load(folder / "videos.npz")["labels"].tolist() == [-1]
    for verdict in found["judges"].values():  # without a class nothing can fail
        assert (verdict["correct"], verdict["of"]) == (None, 0)
        assert len(verdict["seen"]) == 1 and verdict["asked"] == [None]
    page = (folder / "index.html").read_text()
    assert f"imagines for “{looking}”" in page and "feature visualisation" in page
    assert "Confidence in the likeliest class" in page
    assert "judge sees it" not in page and "judges see it" not in page
    (shown,) = re.findall(r'<pre id="command">(.*?)</pre>', page, re.S)
    _, *again = shlex.split(html.unescape(shown).replace("\\\n", " "))
    assert "--label" not in again and "--method" not in again
    again[again.index("--out") + 1] = "run of channel"
    assert "is finished" in call(*again).out, "another run would be refused"
    other = call(*words_of("synthesize", GOOD, **given | {"objective": "channel:0:3"}))
    assert other.code == 2 and "differs in objective" in other.err


def test_a_run_goes_on(call, root):
    given = BLIND | {"objective": "layer:-1", "copies": 2}
    whole, cut = root / "whole", root / "cut"
    for out in (whole, cut):
        words = words_of("synthesize", GOOD, **given, save_every=0, out=out)
        assert call(*words).code == 0
    before, last = sorted((cut / "state").iterdir(), key=lambda path: int(path.name))
    assert before.name == "4"
    shutil.rmtree(last)
    (cut / "videos.npz").unlink()
    assert "resuming" in call(*words).err
    videos = [np.load(out / "videos.npz")["videos"] for out in (whole, cut)]
    np.testing.assert_array_equal(*videos)
    assert len(videos[0]) == 2 and np.abs(videos[0][0] - videos[0][1]).max() > 0


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"objective": "chanel:0:2"}, ["write one of channel:TAP:INDEX"]),
        ({"objective": "channel:99:2"}, ["taps are 0 to", "leaps-jax models"]),
        ({"objective": "channel:nrm:2"}, ["channel:nrm:2: no such tap"]),
        ({"objective": "channel:0:4000"}, ["has channels 0 to"]),
        ({"objective": "neuron:0:1:9,9,9,9"}, ["positions up to"]),
        ({"label": "jack"}, ["--label jack: not together with --objective"]),
        ({"method": "deep_dream"}, ["--method", "not allowed with", "--objective"]),
        ({"set": "init=stimulus"}, ["stimulus: missing, and --objective starts from"]),
    ],
)
def test_mistakes(call, root, changed, expected):
    given = BLIND | {"out": "{root}/never"} | changed
    assert_refused(call, root, words_of("synthesize", GOOD, **given), expected)


def test_a_table_has_none(call, root):
    words = ["synthesize", "--jobs", root / "jobs.csv", "--out", root / "jobs"]
    refused = call(*words, "--objective", "layer:0")
    assert refused.code == 2
    assert "--objective layer:0: not together with --jobs" in refused.err


def test_models_lists_the_taps(call):
    told = call("models", "slow_r50_tiny").out
    taps = told.partition("taps for --objective")[2].splitlines()
    rows = [line.split() for line in taps if re.match(r" +\d", line)]
    assert [row[0] for row in rows] == [str(n) for n in range(len(rows))]
    assert len(rows) == int(re.search(r"^taps +(\d+)$", told, re.M)[1])
    assert rows[-1][1:] == ["stage4/block1/norm_c", "768", "x", "16x3x3"]
