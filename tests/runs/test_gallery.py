"""A gallery: classes by models, from finished runs, in a folder of its own."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Visit, chromium

from leaps_jax import files, render
from leaps_jax.cli.main import main
from leaps_jax.runs import gallery
from leaps_jax.runs.verdicts import Seen

EVIL = "<img src=x onerror=\"document.title='owned'\">"
CLASSES = ("jump", "run", EVIL)
MODELS = ("slow@robust", "vivit@/home/me/weights", EVIL)
SIZE = 16

pytestmark = pytest.mark.skipif(
    render.can_write() is not None, reason=str(render.can_write())
)


def make_run(folder, model, classes, agree=True, given=True, **changed):
    """A folder such as `synthesize` leaves behind."""
    n = len(classes)
    videos = np.zeros((n, 4, SIZE, SIZE, 3), np.float32)
    videos[..., 0] = 1  # red
    stimuli = 1 - videos if given else videos[:0]
    (folder / "videos").mkdir(parents=True)
    np.savez(folder / "videos.npz", videos=videos, stimuli=stimuli)
    for number, name in enumerate(render.file_names(classes)):
        render.write_video(folder / "videos" / f"{name}.mp4", videos[number], 8)
        if given:
            path = folder / "videos" / f"{name}_stimulus.mp4"
            render.write_video(path, stimuli[number], 8)
    self = {"seen": list(classes), "confidence": [0.9] * n}
    other = self | {"seen": list(classes) if agree else ["none"] * n}
    settings = {"model": model, "method": "leaps", "config": {"steps": 5, "seed": 1}}
    record = {"status": "finished", "step": 5, "settings": settings, "seconds": 1}
    record |= {"classes": list(classes), "judges": {"self": self, "other": other}}
    files.write_json(folder / "run.json", record | changed)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three models; one has a class twice and lacks another."""
    root = tmp_path_factory.mktemp("runs")
    return [
        make_run(root / "a", MODELS[0], CLASSES),
        make_run(root / "b", MODELS[1], ("jump", "jump", EVIL), agree=False),
        make_run(root / "c", MODELS[2], CLASSES, given=False),
    ]


@pytest.fixture(scope="module")
def built(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("gallery") / "out"
    assert main(["gallery", *map(str, runs), "--out", str(out)]) == 0
    return out


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.tags, self.told = [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.told += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_every_link_leads_to_a_file_and_a_place_of_the_gallery(built):
    pages = {path.name: Page(path) for path in built.glob("*.html")}
    assert len(pages) == 1 + len(CLASSES) + len(MODELS)
    for page in pages.values():
        for _, attributes in page.tags:
            for key in ("href", "src", "data-video"):
                link = attributes.get(key) or ""
                if not link or link.startswith(("data:", "https://arxiv.org/")):
                    continue
                path, _, place = link.partition("#")
                assert not path.startswith("/") and ".." not in path and ":" not in path
                if path:
                    assert (built / path).is_file(), link
                if place:
                    there = pages[path] if path else page
                    assert place in [a.get("id") for _, a in there.tags], link
        ids = [a["id"] for _, a in page.tags if "id" in a]
        assert len(ids) == len(set(ids))


def test_the_grid_has_a_row_for_each_class_and_a_column_for_each_model(built):
    page = Page(built / "index.html")
    assert "9 synthesised videos: 3 classes by 3 models" in page.told
    assert len(page.all("tr")) == 1 + 3
    assert len([a for a in page.all("th") if a["scope"] == "col"]) == 3
    tiles = [a["id"] for a in page.all("div") if a.get("class") == "tile"]
    assert len(tiles) == 3 * 3 - 1, "one model was not asked for one class"
    assert "class-jump--model-slow_robust" in tiles
    assert "vivit@weights" in page.told and "/home/me" not in page.told
    assert "+1" in page.told, "the second video of a class is on its page"


def test_a_page_shows_all_videos_beside_their_clips(built):
    page = Page(built / "class-jump.html")
    shown = [a["data-video"] for a in page.all("div") if "data-video" in a]
    assert len(shown) == 4 + 3, "four videos, and clips of three"
    assert shown[:2] == ["media/000_000_jump_stimulus.mp4", "media/000_000_jump.mp4"]
    page = Page(built / "model-slow_robust.html")
    assert len([a for a in page.all("section") if a["class"] == "tile"]) == 3
    assert "1/1 judges" in page.told and "LEAPS, steps 5, seed 1" in page.told


def test_a_video_without_a_class_is_seen_by_no_share_of_judges(tmp_path):
    looking = "channel:stem/norm:3"
    told = {"model": "slow", "seen": ["run"], "confidence": [0.4]}
    judges = {role: told | {"correct": None, "of": 0} for role in ("self", "other")}
    run = make_run(tmp_path / "run", MODELS[0], [looking], given=False, judges=judges)
    assert main(["gallery", str(run), "--out", str(tmp_path / "out")]) == 0
    for path in (tmp_path / "out").glob("*.html"):
        page = Page(path)
        assert looking in page.told and "0/1" not in page.told
        assert [a["data-judged"] for _, a in page.tags if "data-judged" in a] == [""]


def test_pictures_and_videos_are_those_of_the_run(built, runs):
    from PIL import Image

    for name, red in (("000_000_jump", True), ("000_000_jump_stimulus", False)):
        pixels = np.asarray(Image.open(built / "media" / f"{name}.jpg")).mean((0, 1))
        assert [value > 200 for value in pixels] == [red, not red, not red]
    copied = (built / "media" / "000_000_jump.mp4").read_bytes()
    assert copied == (runs[0] / "videos" / "000_jump.mp4").read_bytes()


def test_columns_are_runs_on_request_and_methods_are_told_apart(runs, tmp_path):
    items = gallery.read(runs, "run")
    assert list(dict.fromkeys(item.column for item in items)) == ["a", "b", "c"]
    settings = {"model": MODELS[0], "method": "deep_dream"}
    dream = make_run(tmp_path / "d", MODELS[0], ["jump"], settings=settings)
    columns = {item.column for item in gallery.read([runs[0], dream])}
    assert columns == {"slow@robust, LEAPS", "slow@robust, DeepDream"}


def refused(capsys, words):
    assert main(["gallery", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_no_finished_run_is_refused_in_one_line(runs, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    line = refused(capsys, [tmp_path, *out])
    assert "run=" in line and "holds no run; give a folder" in line
    stopped = make_run(tmp_path / "s", "m", ["jump"], status="stopped")
    assert "is stopped at step 5; finish it" in refused(capsys, [stopped, *out])
    lacking = shutil.copytree(runs[0], tmp_path / "l")
    (lacking / "videos" / "001_run.mp4").unlink()
    line = refused(capsys, [runs[0], lacking, *out])
    assert "lacks videos/001_run.mp4; make the run again" in line
    damaged = make_run(tmp_path / "d", "m", ["jump"], judges={"self": {}})
    assert "judges.self.seen: is missing; make" in refused(capsys, [damaged, *out])
    few = {"self": {"seen": [], "confidence": []}}
    damaged = make_run(tmp_path / "f", "m", ["jump"], judges=few)
    assert "fewer verdicts than classes; make" in refused(capsys, [damaged, *out])
    line = refused(capsys, [runs[0], *out, "--columns", "class"])
    assert "columns='class': must be model or run" in line
    assert not (tmp_path / "out").exists()
    broken = shutil.copytree(runs[0], tmp_path / "b")
    (broken / "videos.npz").write_bytes(b"PK")
    assert "videos.npz is missing or damaged" in refused(capsys, [broken, *out])


TOP = {"seen": ["jump"], "confidence": [0.5]}
DAMAGED = {
    "settings are null": ({"settings": None}, "settings=None: must"),
    "a model is a number": ({"settings": {"model": 3}}, "settings.model=3: must"),
    "a config is a list": ({"settings": {"config": [1]}}, "settings.config=[1]: must"),
    "judges are null": ({"judges": None}, "judges=None: must"),
    "no bars": ({"judges": {"a": TOP | {"top": [[]]}}}, "judges.a.top[0]=[]: must"),
    "a bar": ({"judges": {"a": TOP | {"top": [[["jump", 2]]]}}}, "must be a name and"),
    "shares": ({"judges": {"a": TOP | {"asked": ["1"]}}}, "judges.a.asked[0]"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_record(runs, tmp_path, capsys, case):
    changes, expected = DAMAGED[case]
    run = make_run(tmp_path / "run", "m", ["jump"], **changes)
    assert expected in refused(capsys, [run, "--out", tmp_path / "out"])


@pytest.mark.parametrize("content", ["[" * 10**5, "null", '{"files": 3}', "\udcff"])
def test_a_folder_with_a_strange_record_is_no_gallery(runs, tmp_path, capsys, content):
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "gallery.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    words = [runs[0], "--out", tmp_path / "out", "--overwrite"]
    assert "is no gallery; choose" in refused(capsys, words)
    path.rename(tmp_path / "run.json")
    line = refused(capsys, [tmp_path, "--out", tmp_path / "new"])
    assert "run.json" in line and "make the run again" in line


def test_overwrite_replaces_a_gallery_and_nothing_else(runs, built, tmp_path, capsys):
    out = shutil.copytree(built, tmp_path / "out")
    assert "--overwrite" in refused(capsys, [runs[1], "--out", out])
    (out / "media" / "mine.txt").write_text("precious")
    victim = tmp_path / "victim.html"
    victim.write_text("precious")
    listed = json.loads((out / "gallery.json").read_text())["files"]
    listed += ["../victim.html", str(victim), "media/mine.txt"]
    files.write_json(out / "gallery.json", {"files": listed})
    again = ["gallery", str(runs[2]), "--out", str(out), "--overwrite"]
    assert main(again) == 0
    assert victim.read_text() == (out / "media" / "mine.txt").read_text() == "precious"
    assert len(list(out.glob("media/*.mp4"))) == 3
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("precious")
    line = refused(capsys, [runs[1], "--out", strange, "--overwrite"])
    assert "is no gallery; choose another folder" in line
    assert [path.name for path in strange.iterdir()] == ["thesis.txt"]


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


TILES = "[...document.querySelectorAll('.tile')]"
SHOWN = f"{TILES}.filter(t => t.offsetParent).length"
VIDEOS = "[...document.querySelectorAll('video')]"


@pytest.mark.parametrize("name", ["index", "class-jump", "model-slow_robust"])
@pytest.mark.parametrize("width", [360, 1920])
def test_videos_in_view_play_from_a_disk(browser, built, name, width):
    with Visit(browser, built / f"{name}.html", width=width) as seen:
        seen.until(f"{VIDEOS}.length && {VIDEOS}.every(v => v.currentTime > 0)")
        wide = "document.documentElement.scrollWidth - innerWidth"
        assert seen.page.evaluate(wide) <= 0
        assert seen.page.title() != "owned" and seen.wrong == []
        inside = (built.as_uri(), "data:")
        assert all(url.startswith(inside) for url in seen.asked)
        drawn = "[...document.images].filter(i => i.complete && i.naturalWidth).length"
        assert seen.page.evaluate(drawn) > 0
        seen.page.click("#play")
        seen.until(f"{VIDEOS}.length === 0")


def test_search_and_filters(browser, built):
    with Visit(browser, built / "index.html") as seen:
        assert seen.page.evaluate(SHOWN) == 8
        seen.page.fill("#search", "JUMP slow")
        assert seen.page.evaluate(SHOWN) == 1
        assert seen.page.inner_text("#count") == "1 of 8 shown"
        assert seen.page.evaluate("document.querySelectorAll('tbody tr').length") == 3
        rows = "[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden)"
        assert seen.page.evaluate(f"{rows}.length") == 1
        seen.page.fill("#search", "onerror=")
        assert seen.page.evaluate(SHOWN) == 3 + 3 - 1
        seen.page.fill("#search", "")
        seen.page.select_option("#judged", "no")
        assert seen.page.evaluate(SHOWN) == 2, "of the second model, which none sees"
        seen.page.select_option("#judged", "")
        seen.page.click("#columns summary")
        seen.page.click("#columns input >> nth=1")
        assert seen.page.evaluate(SHOWN) == 6
        assert seen.page.inner_text("#count") == "6 of 8 shown"
        assert seen.wrong == []


def test_a_cell_has_an_address(browser, built):
    with Visit(browser, built / "index.html", width=360) as seen:
        place = "class-run--model-slow_robust"
        seen.page.goto(f"{seen.page.url}#{place}")
        outlined = f"getComputedStyle(document.getElementById('{place}')).outlineStyle"
        seen.until(f"{outlined} === 'solid'")
        top = f"document.getElementById('{place}').getBoundingClientRect().top"
        assert 0 <= seen.page.evaluate(top) < 900


def test_two_thousand_videos_need_few_players(browser, built, tmp_path):
    out = tmp_path / "many"
    (out / "media").mkdir(parents=True)
    for end in (".mp4", ".jpg"):
        shutil.copy(built / "media" / f"000_000_jump{end}", out / "media" / f"x{end}")
    items = many(2000)
    labels = gallery._slugs("class", (item.label for item in items))
    columns = gallery._slugs("model", (item.column for item in items))
    for path, text in gallery._pages(items, labels, columns):
        if path == "index.html":
            (out / path).write_text(text)
    with Visit(browser, out / "index.html", width=1920, height=2500) as seen:
        seen.until(f"{VIDEOS}.some(v => v.currentTime > 0)")
        assert seen.page.evaluate(f"{TILES}.length") == 2000
        for share in (0.3, 0.6, 1):
            height = "document.documentElement.scrollHeight"
            seen.page.evaluate(f"scrollTo(0, {share} * {height})")
            seen.page.wait_for_timeout(300)
            seen.until(f"{VIDEOS}.length > 20")
            assert seen.page.evaluate(f"{VIDEOS}.length") <= 40
        seen.until(f"{VIDEOS}.length && {VIDEOS}.some(v => v.currentTime > 0)")
        inside = "v.getBoundingClientRect().bottom > 0"
        assert seen.page.evaluate(f"{VIDEOS}.every(v => {inside})")
        assert seen.wrong == []


def many(count):
    here = Path("x.mp4")
    return [
        gallery.Item(
            f"class {n // 8}", f"model {n % 8}", here, n, here, None, "x", "", Seen(())
        )
        for n in range(count)
    ]
