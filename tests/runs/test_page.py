"""The page of a run: one file, from its first seconds, that tells what is so."""

import json
import re
import shlex
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from leaps_jax import Config, objectives, render
from leaps_jax.model import Model, ModelSpec
from leaps_jax.runs import command, page, previews
from leaps_jax.runs import folder as runs
from leaps_jax.runs.verdicts import Seen
from leaps_jax.runtime.engine import Engine
from leaps_jax.synthesis import prepare

EVIL = "<img src=x onerror=\"document.title='owned'\">"
STEPS = 40


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found, self.told = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.told += data

    def all(self, name: str, **wanted) -> list[dict]:
        return [a for t, a in self.found if t == name and wanted.items() <= a.items()]


def evil(model: Model) -> Model:
    """The model with a class that is no name but a page's end."""
    spec = model.spec
    names = (spec.classes[0], EVIL, *spec.classes[2:])
    facts = {"frames": spec.frames, "size": spec.size, "licence": EVIL}
    spec = ModelSpec("tiny", classes=names, **facts)
    return Model(model.module, model.variables, spec)


@pytest.fixture(scope="module")
def problem(tiny):
    stimuli = np.random.default_rng(0).random((2, 4, 32, 32, 3), np.float32)
    config = Config(steps=STEPS, steps_per_call=10)
    return prepare(evil(tiny), stimuli, [0, 1], config=config)


@pytest.fixture(scope="module")
def followed(tmp_path_factory, problem):
    """A run, and its page as it was after each call of the compiled steps."""
    folder, seen = tmp_path_factory.mktemp("page") / "run", []
    run = Engine.run

    def watched(*args):
        for snapshot in run(*args):
            seen.append((folder / "index.html").read_text())
            yield snapshot

    settings = {"model": f"tiny@{Path.home()}/weights", "method": "leaps"}
    settings |= {"stimulus": ["/data/of/mine/clip.mp4"], "verifier": None}
    settings |= {"labels": [0, 1], "copies": 1, "config": {}}
    judges = {"self": problem.model, "other": problem.model}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "run", watched)
        how = {"preview_every": 10, "save_every": 0.0}
        runs.execute(folder, problem, {}, judges, **how)
    record = json.loads((folder / "run.json").read_text())
    record["settings"] = settings | {"config": vars(problem.config)}
    page.write_page(folder, problem, record)
    return folder, [*seen, (folder / "index.html").read_text()]


def test_the_page_is_there_from_the_start_and_follows_the_run(followed):
    _, seen = followed
    assert len(seen) == STEPS // 10 + 1
    for number, text in enumerate(seen[:-1]):
        tags = Tags(text)
        (body,) = tags.all("body")
        assert "data-running" in body and not tags.all("video")
        assert len(tags.all("canvas", **{"data-source": "still"})) == 2, "stimuli"
        stages = json.loads(re.search(r'id="stages">(.*?)</script>', text)[1])
        done = [stage["step"] for stage in stages]
        assert done == list(range(0, 10 * number + 1, 10))
    last = Tags(seen[-1])
    assert "data-running" not in last.all("body")[0]
    assert len(last.all("video")) == 4


def test_the_page_needs_no_other_file(followed):
    folder, seen = followed
    for text in (seen[0], seen[-1]):
        tags = Tags(text)
        for tag, attributes in tags.found:
            assert not {"srcset", "data", "poster", "action"} & attributes.keys(), tag
            if "src" in attributes:
                assert attributes["src"].startswith("data:"), tag
        links = [a["href"] for a in tags.all("a")]
        outside = {link for link in links if "//" in link}
        assert outside == {"https://arxiv.org/abs/2303.09941"}
        files = {link for link in links if not link.startswith(("#", "https:"))}
        if text is seen[-1]:
            assert files and all((folder / file).is_file() for file in files)
        assert "url(" not in text and "@import" not in text
        (policy,) = tags.all("meta", **{"http-equiv": "Content-Security-Policy"})
        assert "default-src 'none'" in policy["content"]
        assert "unsafe" not in policy["content"] and "http" not in policy["content"]
        assert not [a for _, a in tags.found if any(k[:2] == "on" for k in a)]
        assert not [a for _, a in tags.found if "style" in a]


def test_the_page_tells_no_path_of_this_machine(followed):
    folder, seen = followed
    for text in seen:
        for path in (folder, Path.home() / "weights", Path("/data/of/mine")):
            assert str(path) not in text
    assert "tiny@weights" in seen[-1] and "clip.mp4" in seen[-1]


def test_what_others_wrote_stays_text(followed):
    _, seen = followed
    for text in seen:
        tags = Tags(text)
        assert EVIL in tags.told and not tags.all("img")
        assert not [a for _, a in tags.found if "onerror" in a]
        assert text.count("<script") == text.count("</script") == 3


def test_title_names_model_class_and_method(followed):
    _, seen = followed
    title = re.findall(r"<title>(.*?)</title>", seen[-1])[0]
    assert title.startswith("tiny@weights · ") and title.endswith(" · LEAPS")
    assert "&lt;img" in title


def test_bars_are_what_the_judges_said(followed, problem):
    folder, seen = followed
    record = json.loads((folder / "run.json").read_text())
    for role in ("self", "other"):
        verdict = record["judges"][role]
        for number, right in enumerate(problem.names):
            top = verdict["top"][number]
            assert len(top) == 5 == len({name for name, _ in top})
            shares = [share for _, share in top]
            assert shares == sorted(shares, reverse=True)
            assert top[0] == [verdict["seen"][number], verdict["confidence"][number]]
            assert dict(top)[right] == verdict["asked"][number], "of five all are told"
    widths = [a["width"] for a in Tags(seen[-1]).all("rect")]
    shares = [
        share
        for number in range(2)
        for role in ("self", "other")
        for _, share in record["judges"][role]["top"][number]
    ]
    assert widths == [f"{100 * share:.4g}%" for share in shares]


def test_a_class_that_no_judge_thinks_of_has_a_bar_too():
    told = {"seen": ["run"], "confidence": [0.9], "asked": [0.01]}
    told |= {"top": [[["run", 0.9], ["jump", 0.09]]]}
    (verdict,) = Seen.of({"a": told}, 0, "walk").verdicts
    shown = [(bar.name, bar.share, bar.right) for bar in verdict.bars]
    assert shown == [("run", 0.9, False), ("jump", 0.09, False), ("walk", 0.01, True)]
    old = {"seen": ["run"], "confidence": [0.9]}  # of a run before there were five
    (verdict,) = Seen.of({"a": old}, 0, "run").verdicts
    assert verdict.right and len(verdict.bars) == 1


LINES = [
    {"step": step, "total": [2.0 * v, 4.0 * v], "confidence": [c, c + 0.2]}
    | {"weighted": {"small": [0.01, 0.03], "large": [v, 3 * v]}}
    for step, v, c in ((10, 4.0, 0.1), (20, 2.0, 0.3), (30, 1.0, 0.7))
]


def test_curves_are_means_over_videos_the_largest_term_first():
    sure, loss = page.charts(LINES, 2)
    legend = re.findall(r"<span>(.*?)</span><b>(.*?)</b>", loss)
    assert legend == [("total", "3"), ("large", "2"), ("small", "0.02")]
    assert "log scale" in loss and "log scale" not in sure
    points = re.findall(r'points="(.*?)"', loss)
    assert len(points) == 3
    total = [[float(v) for v in pair.split(",")] for pair in points[0].split()]
    (x0, y0), (x1, y1), (x2, y2) = total
    assert x0 < x1 < x2 and y0 < y1 < y2, "time to the right, less is lower"
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.1)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.15), "halved twice: log scale"
    (line,) = re.findall(r'points="(.*?)"', sure)
    heights = [float(pair.split(",")[1]) for pair in line.split()]
    grid = re.findall(r'y1="(.*?)".*?<text .*?>(.*?)</text>', sure)
    (bottom, _), (top, _) = grid[0], grid[5]
    share = [(float(bottom) - y) / (float(bottom) - float(top)) for y in heights]
    assert share == pytest.approx([0.2, 0.4, 0.8], abs=0.01)


def test_curves_leave_out_what_is_not_finite():
    broken = LINES[-1] | {"step": 40, "total": [float("nan")] * 2}
    _, loss = page.charts([*LINES, broken], 2)
    assert "nan" not in loss.lower()


def test_videos_beyond_the_size_of_a_page_are_linked(followed, problem, tmp_path):
    folder, _ = followed
    record = json.loads((folder / "run.json").read_text())
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "videos").symlink_to(folder / "videos")
    page.write_page(copy, problem, record)
    tags = Tags((copy / "index.html").read_text())
    one, other = (len(v["src"]) for v in tags.all("video")[:2])
    page.write_page(copy, problem, record, most=one + other)
    tags = Tags((copy / "index.html").read_text())
    assert len(tags.all("article")) == 1 and "1 of 2 videos are shown" in tags.told
    names = render.file_names(problem.names)
    assert {"href": f"videos/{names[1]}.mp4"} in tags.all("a")


def test_a_run_without_previews_has_a_page(tmp_path, problem):
    config = Config(steps=2, steps_per_call=2)
    short = prepare(
        problem.model, None, [0], config=config, objective=objectives.cross_entropy()
    )
    runs.execute(tmp_path / "run", short, {}, {}, preview_every=0)
    assert not (tmp_path / "run" / "previews.zip").exists()
    tags = Tags((tmp_path / "run" / "index.html").read_text())
    assert len(tags.all("video")) == 1 and not tags.all("input", id="stage")


def test_previews_are_bounded_and_those_after_a_restart_are_dropped(tmp_path):
    path = tmp_path / "previews.zip"
    videos = np.random.default_rng(0).random((18, 40, 150, 150, 3), np.float32)
    previews.add(path, 0, videos, 1000)
    few = videos[:2, :4, :16, :16]
    for step in range(30, 1000, 30):
        previews.add(path, step, few, 1000)
    found = previews.read(path)
    assert list(found)[0] == 0 and list(found)[-1] == 990
    assert previews.STEPS <= len(found) <= previews.STEPS + 2
    assert len(found[0]) == previews.VIDEOS and len(found[990]) == 2
    assert path.stat().st_size < 12e6
    assert max(len(strip) for strip in found[0]) < 400_000
    previews.keep(path, 500)
    assert max(previews.read(path)) <= 500
    path.write_bytes(path.read_bytes()[:100])
    assert previews.read(path) == {}
    with zipfile.ZipFile(path, "w") as held:
        held.writestr("x/y.jpg", b"")
    assert previews.read(path) == {}


def test_the_command_has_names_that_are_words():
    config = vars(Config(steps=3))
    settings = {"model": "m@w", "method": "leaps", "copies": 2, "config": config}
    settings |= {"labels": [0, 0, 1, 1, 2, 2, 3, 3]}
    classes = ["it's a jack", "-x", "twin", "twin"]
    line = command.repeating(settings, classes, ["j@/home/me/w"])
    words = shlex.split(line.replace("\\\n", " "))
    label = words.index("--label")
    assert words[label + 1 : label + 5] == ["it's a jack", "1", "twin", "3"]
    assert words[words.index("--judge") + 1] == "j@w"
    assert command.repeating({}, classes, []) is None
