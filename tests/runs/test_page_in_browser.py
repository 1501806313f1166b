"""The page of a run in a browser: it plays, its sliders work, nothing else runs."""

import json
import os
import time

import numpy as np
import pytest
from browser import Visit, chromium

from leaps_jax import Config
from leaps_jax.model import Model, ModelSpec
from leaps_jax.runs import media, page
from leaps_jax.synthesis import prepare

EVIL = "<img src=x onerror=\"document.title='owned'\">"
FRAMES, SIZE = 4, 32
STAGES = (0, 10, 20)


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def problem(tiny):
    spec = ModelSpec("tiny", FRAMES, SIZE, (EVIL, "b", "c", "d", "e"), stride=12)
    model = Model(tiny.module, tiny.variables, spec)
    clips = np.zeros((3, FRAMES, SIZE, SIZE, 3), np.float32)
    clips[:, 1::2] = 1  # each frame tells which it is
    return prepare(model, clips, [0, 1, 2], config=Config(steps=30))


@pytest.fixture(scope="module")
def written(tmp_path_factory, problem):
    """Folders of a run that goes on, and of one that is finished."""
    verdict = {"seen": [EVIL] * 3, "confidence": [0.9] * 3}
    folders = {}
    for status in ("running", "finished"):
        folder = tmp_path_factory.mktemp("browser") / status
        folder.mkdir()
        lines = [
            {"step": s, "total": [3 / s] * 3, "confidence": [s / 30] * 3}
            | {"weighted": {EVIL: [1 / s] * 3}}
            for s in (10, 20, 30)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        for step in STAGES:  # red, the brighter the later
            videos = np.zeros_like(problem.stimuli)
            videos[..., 0] = (step + 5) / 30
            page.add_preview(folder, problem, step, videos)
        record = {"status": status, "step": 20, "judges": {}}
        if status == "finished":
            numbers = np.arange(3)
            media.write_videos(folder, problem, numbers, 1 - problem.stimuli)
            record |= {"step": 30, "judges": {"self": verdict | {"model": EVIL}}}
        page.write_page(folder, problem, record)
        folders[status] = folder
    return folders


def visit(browser, folder, **how) -> Visit:
    return Visit(browser, folder / "index.html", **how)


VIDEOS = "[...document.querySelectorAll('video')]"
RED = """(() => { const c = document.querySelector('.made canvas');
  return [...c.getContext('2d').getImageData(1, 1, 1, 1).data] })()"""


@pytest.mark.parametrize("width", [360, 1000, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_videos_play_together_and_nothing_goes_wrong(browser, written, width, scheme):
    how = {"width": width, "color_scheme": scheme}
    with visit(browser, written["finished"], **how) as seen:
        seen.until(f"{VIDEOS}.slice(0, 2).every(v => !v.paused && v.currentTime > 0)")
        seen.page.wait_for_timeout(1500)
        times = seen.page.evaluate(f"{VIDEOS}.slice(0, 2).map(v => v.currentTime)")
        length = FRAMES * 12 / 30
        apart = abs(times[0] - times[1]) % length
        assert min(apart, length - apart) < 0.4, "a frame's time"
        wide = "document.documentElement.scrollWidth - innerWidth"
        assert seen.page.evaluate(wide) <= 0
        assert seen.wrong == []
        outside = [url for url in seen.asked if not url.startswith("data:")]
        assert outside == [seen.page.url]
        if os.environ.get("LEAPS_SCREENSHOTS"):  # to look at
            name = f"{os.environ['LEAPS_SCREENSHOTS']}/run-{width}-{scheme}.png"
            seen.page.screenshot(path=name, full_page=True)


def test_only_videos_in_view_play(browser, written):
    with visit(browser, written["finished"], width=360) as seen:
        seen.until(f"!{VIDEOS}[0].paused")
        assert seen.page.evaluate(f"{VIDEOS}.at(-1).paused")
        seen.page.evaluate(f"{VIDEOS}.at(-1).scrollIntoView()")
        seen.until(f"!{VIDEOS}.at(-1).paused && {VIDEOS}[0].paused")


def test_the_sliders_of_frames_and_of_steps(browser, written):
    with visit(browser, written["finished"]) as seen:
        seen.until(f"!{VIDEOS}[0].paused")
        seen.set("#frame", 2)
        seen.until(f"{VIDEOS}.every(v => v.paused)")
        seen.until(f"{VIDEOS}.slice(0, 2).every(v => Math.abs(v.currentTime - 1) < .1)")
        assert seen.page.inner_text("#frame + output") == "3 / 4"
        seen.set("#frame", 0)
        seen.until(f"{VIDEOS}.slice(0, 2).every(v => v.currentTime < .4)")
        seen.set("#frame", 2)
        said = "document.querySelector('#frame').getAttribute('aria-valuetext')"
        assert seen.page.evaluate(said) == "frame 3 of 4"
        assert not seen.page.is_visible(".made canvas")
        for number, step in enumerate(STAGES):
            seen.set("#stage", number)
            assert seen.page.inner_text("#stage + output") == f"step {step}"
            assert seen.page.is_visible(".made canvas >> nth=0")
            seen.until(f"{RED}[0] > 0")
            red, green, _, _ = seen.page.evaluate(RED)
            assert abs(red - 255 * (step + 5) / 30) < 12 and green < 12
        x = "document.querySelector('.marker').getAttribute('x1')"
        middle = float(seen.page.evaluate(x))
        seen.set("#stage", len(STAGES))
        assert seen.page.inner_text("#stage + output") == "the result"
        assert not seen.page.is_visible(".made canvas")
        assert float(seen.page.evaluate(x)) > middle, "the marker in the curves"
        assert seen.wrong == []


def test_keys_are_enough(browser, written):
    with visit(browser, written["finished"]) as seen:
        seen.until(f"!{VIDEOS}[0].paused")
        for _ in range(2):  # past the link that skips to the videos
            seen.page.keyboard.press("Tab")
        assert seen.page.evaluate("document.activeElement.id") == "play"
        seen.page.keyboard.press("Space")
        seen.until(f"{VIDEOS}.every(v => v.paused)")
        assert seen.page.get_attribute("#play", "aria-pressed") == "false"
        seen.page.keyboard.press("Tab")
        before = seen.page.input_value("#frame")
        seen.page.keyboard.press("Home")
        seen.page.keyboard.press("ArrowRight")
        assert seen.page.input_value("#frame") == "1", before
        shown = "getComputedStyle(document.activeElement).outlineStyle"
        assert seen.page.evaluate(shown) == "solid"


def test_nothing_moves_by_itself_for_who_wants_it_calm(browser, written):
    with visit(browser, written["finished"], reduced_motion="reduce") as seen:
        seen.page.wait_for_timeout(800)
        assert seen.page.evaluate(f"{VIDEOS}.every(v => v.paused)")
        assert seen.page.inner_text("#play") == "Play"
        seen.page.click("#play")
        seen.until(f"!{VIDEOS}[0].paused")


def test_what_others_wrote_runs_nothing(browser, written):
    for folder in written.values():
        with visit(browser, folder) as seen:
            seen.page.wait_for_timeout(300)
            assert seen.page.title() != "owned"
            assert seen.page.locator("img").count() == 0
            assert EVIL in seen.page.inner_text("h1")


def test_the_policy_stops_what_the_page_did_not_come_with(browser, written, tmp_path):
    text = (written["finished"] / "index.html").read_text()
    more = "<script>document.title='owned'</script><img src='https://example.org/x'>"
    (tmp_path / "index.html").write_text(text.replace("<main", more + "<main"))
    with visit(browser, tmp_path) as seen:
        seen.page.wait_for_timeout(300)
        assert seen.page.title() != "owned"
        assert len([line for line in seen.wrong if "Content Security" in line]) == 2


def test_a_run_that_goes_on_keeps_its_visitors_place(browser, written, problem):
    folder = written["running"]
    with visit(browser, folder, width=360) as seen:
        seen.until(f"{RED}[0] > 0")
        seen.set("#stage", 1)
        seen.set("#frame", 2)
        seen.page.evaluate("scrollTo(0, 400)")
        seen.page.locator("#settings summary").evaluate("s => s.click()")
        seen.page.evaluate("window.old = true")
        page.add_preview(folder, problem, 25, problem.stimuli)
        record = {"status": "running", "step": 25, "judges": {}}
        page.write_page(folder, problem, record)
        seen.until("!window.old && document.querySelector('#stage')")
        seen.until("scrollY === 400")
        assert seen.page.input_value("#stage") == "1"
        assert seen.page.get_attribute("#stage", "max") == "3"
        assert seen.page.input_value("#frame") == "2"
        assert seen.page.inner_text("#play") == "Play"
        assert seen.page.evaluate("document.querySelector('#settings').open")
        assert seen.wrong == []


def test_a_finished_run_does_not_load_again(browser, written):
    with visit(browser, written["finished"]) as seen:
        seen.page.evaluate("window.old = true")
        seen.page.wait_for_timeout(6000)
        assert seen.page.evaluate("window.old")


def test_a_run_of_which_nothing_was_heard_is_left_alone(browser, written, tmp_path):
    text = (written["running"] / "index.html").read_text()
    old = text.replace(
        'data-written="', f'data-written="{int(time.time()) - 9000}" x="'
    )
    (tmp_path / "index.html").write_text(old)
    with visit(browser, tmp_path) as seen:
        seen.page.evaluate("window.old = true")
        seen.until("document.querySelector('#news').textContent.includes('Nothing')")
        assert seen.page.evaluate("window.old")


def test_the_command_is_copied(browser, written, problem, tmp_path):
    settings = {"model": "tiny@w", "method": "leaps", "labels": [1], "copies": 1}
    settings["config"] = vars(problem.config)
    record = {"status": "stopped", "step": 0, "settings": settings}
    page.write_page(tmp_path, problem, record)
    how = {"permissions": ["clipboard-read", "clipboard-write"]}
    with visit(browser, tmp_path, **how) as seen:
        seen.page.click("[data-copies=command]")
        seen.until("document.querySelector('[role=status]').textContent")
        copied = seen.page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("leaps-jax synthesize --model tiny@w")
