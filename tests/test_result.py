"""A result shows and saves itself, and tells of its progress, in a notebook or not."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from leaps_jax import Config, UserError, progress, render, synthesize
from leaps_jax.runs import results

EVIL = "<img src=x onerror=alert(1)>"
CONFIG = Config(steps=6, steps_per_call=2, diversity=0.0)


@pytest.fixture(scope="module")
def evil(tiny):
    names = (tiny.spec.classes[0], EVIL, *tiny.spec.classes[2:])
    return dataclasses.replace(
        tiny, spec=dataclasses.replace(tiny.spec, classes=names, stride=2)
    )


@pytest.fixture(scope="module")
def reports():
    return []


@pytest.fixture(scope="module")
def result(evil, stimuli, reports):
    def told(now):
        reports.append((now, now.videos()))

    return synthesize(evil, stimuli[:2], [0, 1], config=CONFIG, progress=told)


def test_progress_is_told_after_every_call(result, reports):
    assert [now.step for now, _ in reports] == [2, 4, 6]
    for now, videos in reports:
        assert now.steps == 6
        assert now.metrics.keys() == result.metrics.keys()
        for name, values in now.metrics.items():
            np.testing.assert_array_equal(values, result.metrics[name][now.step - 1])
        assert videos.shape == result.videos.shape
    np.testing.assert_array_equal(reports[-1][1], result.videos)
    assert np.abs(reports[0][1] - result.videos).max() > 0


def test_the_result_does_not_depend_on_progress(evil, stimuli, result, capfd):
    silent = synthesize(evil, stimuli[:2], [0, 1], config=CONFIG)
    assert capfd.readouterr() == ("", ""), "a script is told nothing"
    np.testing.assert_array_equal(silent.videos, result.videos)
    for name, values in result.metrics.items():
        np.testing.assert_array_equal(silent.metrics[name], values)


@pytest.mark.parametrize(
    ("asked", "notebook", "shown"),
    [(True, False, True), ("notebook", True, True), (None, True, False)]
    + [(False, True, False), ("notebook", False, False)],
)
def test_a_bar_where_it_is_asked_for(
    asked, notebook, shown, monkeypatch, capfd, tiny, stimuli
):
    from leaps_jax import synthesis

    monkeypatch.setattr(synthesis, "in_notebook", lambda: notebook)
    with synthesis._reporting(asked, 6) as report:
        numbers = {"total": np.array([2.0, 4.0]), "confidence": np.array([0.5, 0.7])}
        report(synthesis.Progress(6, 6, numbers, lambda: stimuli))
    out, err = capfd.readouterr()
    assert not out and bool(err) == shown
    if shown:
        assert "6/6" in err and "total=3" in err and "confidence=0.6" in err


def test_other_progress_is_refused(tiny, stimuli):
    with pytest.raises(UserError, match="progress='bar': must be a function, True"):
        synthesize(tiny, stimuli[:1], [0], progress="bar")


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.told = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.told += data


def test_a_notebook_shows_videos_beside_stimuli(result):
    text = result._repr_html_()
    page = Tags(text)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4
    assert all(a["src"].startswith("data:image/webp;base64,") for a in pictures)
    assert len({a["src"] for a in pictures}) == 4
    assert EVIL in page.told, "a class stays text"
    sure = [int(n) for n in re.findall(r"(\d+)\s%\ssure", page.told)]
    last = result.metrics["confidence"][-1]
    np.testing.assert_allclose(sure, 100 * last, atol=1)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "style", "link"})


def test_many_videos_are_counted_and_not_all_shown(result):
    many = dataclasses.replace(
        result,
        videos=np.repeat(result.videos, 10, 0),
        stimuli=None,
        names=result.names * 10,
        labels=np.tile(result.labels, 10),
        numbers=np.tile(result.numbers, 10),
    )
    text = many._repr_html_()
    assert text.count("<img ") == 12 and "12 of 20 videos" in text
    assert repr(many) == (
        f"Result(20 videos: bend, {EVIL}, bend and 17 more; 4 frames x 32 x 32 px,"
        " by tiny)"
    )


def test_a_picture_plays_the_video_at_its_rate(result):
    import io

    from PIL import Image

    content = render.animation(result.videos[0], result.spec.fps, 16)
    picture = Image.open(io.BytesIO(content))
    assert picture.n_frames == 4 and picture.size == (16, 16)
    assert picture.info["loop"] == 0
    picture.seek(1)
    picture.load()
    assert picture.info["duration"] == round(1000 / 15)


def test_what_save_writes(result, tmp_path):
    pytest.importorskip("mediapy")
    folder = result.save(tmp_path / "out")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    names = ("000_bend", "001_img_src_x_onerror_alert_1")
    assert found == {"videos.npz", "metrics.npz", "index.html", "run.json"} | {
        f"videos/{name}{kind}.mp4" for name in names for kind in ("", "_stimulus")
    }
    with np.load(folder / "metrics.npz") as metrics:
        for name, values in result.metrics.items():
            np.testing.assert_array_equal(metrics[name], values)
    read = results.read(folder)  # as `leaps-jax evaluate` does
    np.testing.assert_array_equal(read["videos"], result.videos)
    np.testing.assert_array_equal(read["stimuli"], result.stimuli)
    assert read["classes"] == list(result.names)
    assert np.abs(read["saved"] - result.videos).mean() < 0.1
    page = (folder / "index.html").read_text()
    assert page.count("<img ") == 4 and EVIL not in page
    assert "default-src 'none'" in page and "http" not in page.split("<body>")[1]
    assert json.loads((folder / "run.json").read_text())["weights"] == result.weights


def test_save_replaces_nothing(result, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="is no empty folder; choose another"):
            result.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_show_plays_in_a_notebook_and_tells_elsewhere(result, monkeypatch, capsys):
    result.show()
    assert "result.save(folder)" in capsys.readouterr().out
    played = {}

    class Mediapy:
        @staticmethod
        def show_videos(videos, titles, **how):
            played.update(how, videos=videos, titles=titles)

    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(render, "_mediapy", lambda: Mediapy)
    result.show()
    assert len(played["videos"]) == 4 and played["fps"] == 15
    assert played["titles"][2:] == [
        "&lt;img src=x onerror=alert(1)&gt;: stimulus",
        "&lt;img src=x onerror=alert(1)&gt;",
    ]
    np.testing.assert_array_equal(played["videos"][1], result.videos[0])


def test_a_model_is_one_line(tiny):
    assert repr(tiny) == "Model(tiny: 5 classes, 4 frames x 32 px, 11,181 parameters)"
