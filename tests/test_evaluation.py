"""What judges are asked, and that every number says what it claims to say."""

import html.parser
import io
import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from leaps_jax import Model, ModelSpec, UserError, evaluation
from leaps_jax.actions import motions
from leaps_jax.evaluation import judges as judging
from leaps_jax.evaluation import metrics, motion, page, tables

LEFT, RIGHT = "walking left", "walking right"
KNOWN = (LEFT, "boxing", RIGHT, "running left", "bend", "jack")
PARTNERS = {"reversed": motions.REVERSED, "mirrored": motions.MIRRORED}
EVIL = "<img src=x onerror=alert(1)>$^$"


class Judge(nn.Module):
    """Walking left or right: the way that the light goes, or `always` the same."""

    always: float = 0.0

    def __call__(self, x, train=False):
        light = x.mean(-1).sum(2)  # b t w
        where = (light * jnp.arange(light.shape[-1])).sum(-1) / light.sum(-1)
        way = self.always or where[:, -1] - where[:, 0]
        way = jnp.broadcast_to(way, len(x))
        none = 0 * way - 9
        return jnp.stack([-way, none, way, none, none, none], -1)


def judge(always: float = 0.0) -> Model:
    return Model(Judge(always), {}, ModelSpec("judge", 4, 16, KNOWN))


def blob(step: int) -> np.ndarray:
    video = np.full((4, 16, 16, 3), 0.1, np.float32)
    for t, frame in enumerate(video):
        at = 7 + step * (2 * t - 3) // 2
        frame[6:9, at : at + 3] = 0.9
    return video


VIDEOS = np.stack([blob(-2), blob(2)])


def textured(frames: int, step: int) -> np.ndarray:
    """A smooth pattern (1, t, 48, 48, 3) that moves to the right and never ends."""
    y, x = np.mgrid[:48, :48]
    moved = x - step * np.arange(frames)[:, None, None]
    shade = 0.5 + 0.2 * np.sin(moved / 3) + 0.2 * np.sin(y / 4 + moved / 7)
    return np.repeat(shade[None, ..., None], 3, -1).astype(np.float32)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def test_accuracy_counts_what_is_right():
    probabilities = np.array(
        [
            [0.6, 0.1, 0.3, 0.0],  # left, right
            [0.3, 0.6, 0.1, 0.0],  # left, taken for boxing, but rather left than right
            [0.5, 0.1, 0.4, 0.0],  # right, taken for left
            [0.1, 0.8, 0.1, 0.0],  # boxing
        ]
    )
    given = (probabilities, np.array([0, 0, 2, 1]), KNOWN[:4])
    found = evaluation.accuracy(*given, motions.REVERSED)
    assert found["clips"] == 4 and found["top1"] == 0.5
    assert found["classes"] == {LEFT: 0.5, "boxing": 1.0, RIGHT: 0.0}
    (pair,) = found["reversed_pairs"].values()
    assert pair == {"top1": pytest.approx(1 / 3), "choice": pytest.approx(2 / 3)}
    assert evaluation.accuracy(*given)["reversed_pairs"] == {}, "none were handed in"


@pytest.mark.filterwarnings("error")
def test_a_pair_without_clips_has_no_accuracy():
    given = (np.eye(4)[[1]], np.array([1]), KNOWN[:4])
    found = evaluation.accuracy(*given, motions.REVERSED)
    assert found["top1"] == 1 and found["reversed_pairs"] == {}


def test_a_motion_that_is_seen_turns_round():
    rows = evaluation.motion_test(judge(), VIDEOS, [LEFT, RIGHT], PARTNERS)
    assert {(r["video"], r["class"], r["partner"], r["change"]) for r in rows} == {
        (i, *names, change)
        for i, names in enumerate([(LEFT, RIGHT), (RIGHT, LEFT)])
        for change in ("reversed", "mirrored")
    }
    assert all(row["before"] > 0.9 and row["after"] > 0.9 for row in rows)
    all_of_them = {"of": 2, "right": 2, "flips": 2}
    counted = evaluation.motion_counts(rows)
    assert counted == {"reversed": all_of_them, "mirrored": all_of_them}


def test_a_judge_that_ignores_motion_does_not_turn_round():
    rows = evaluation.motion_test(judge(always=1.0), VIDEOS, [LEFT, RIGHT], PARTNERS)
    assert {(row["class"], row["before"] > 0.5) for row in rows} == {
        (LEFT, False),
        (RIGHT, True),
    }
    # what is wrong before is right after, by no merit; what was right is not
    assert all((row["before"] > 0.5) != (row["after"] > 0.5) for row in rows)
    one = {"of": 2, "right": 1, "flips": 1}
    assert evaluation.motion_counts(rows) == {"reversed": one, "mirrored": one}


def test_the_wrong_motion_is_not_right():
    rows = evaluation.motion_test(judge(), VIDEOS[::-1], [LEFT, RIGHT], PARTNERS)
    none = {"of": 2, "right": 0, "flips": 0}
    assert evaluation.motion_counts(rows) == {"reversed": none, "mirrored": none}


def test_classes_without_a_partner_that_the_judge_knows_are_left_out():
    names = ["boxing", "sitting down", "running left", "no action", RIGHT]
    rows = evaluation.motion_test(judge(), VIDEOS[[1] * 5], names, PARTNERS)
    assert {(row["video"], row["class"]) for row in rows} == {(4, RIGHT)}
    assert (
        evaluation.motion_test(judge(), VIDEOS, ["boxing", "no action"], PARTNERS) == []
    )
    assert evaluation.motion_test(judge(), VIDEOS, [LEFT, RIGHT], {}) == []
    assert evaluation.motion_counts([]) == {}


def test_what_a_judge_sees():
    videos = VIDEOS[[0, 1] * 5]  # more than a batch
    found = evaluation.judge(judge(), videos, [RIGHT] * 10)
    assert (found["model"], found["correct"], found["of"]) == ("judge", 5, 10)
    assert found["seen"] == [LEFT, RIGHT] * 5
    assert all(0.9 < confidence <= 1 for confidence in found["confidence"])


def test_without_a_class_there_is_nothing_to_be_right_about():
    found = evaluation.judge(judge(), VIDEOS, [None, None])
    assert (found["correct"], found["of"]) == (None, 0)
    assert found["seen"] == [LEFT, RIGHT] and found["asked"] == [None, None]
    some = evaluation.judge(judge(), VIDEOS, [None, LEFT])
    assert (some["correct"], some["of"]) == (0, 1)
    both = evaluation.joined([found, some])
    assert (both["correct"], both["of"]) == (0, 1) and len(both["seen"]) == 4
    assert evaluation.joined([found, found])["correct"] is None


def test_the_last_batch_is_filled_up_and_a_judge_compiled_once(tiny):
    judging._answers.clear_cache()
    videos = noise(5, 4, 32, 32, 3)
    whole = evaluation.ask(tiny, videos, batch=8)
    parts = evaluation.ask(tiny, videos, batch=2)
    assert whole.probabilities.shape == (5, 5)
    np.testing.assert_allclose(whole.probabilities, parts.probabilities, rtol=1e-4)
    np.testing.assert_allclose(whole.features, parts.features, rtol=1e-4, atol=1e-6)
    assert judging._answers._cache_size() == 2, "one program for each size of a batch"


def test_features_are_what_enters_the_classifier(tiny):
    found = evaluation.ask(tiny, noise(2, 4, 32, 32, 3))
    assert found.source == "input of head"
    head = tiny.variables["params"]["head"]
    logits = found.features @ head["kernel"] + head["bias"]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4)


def test_without_a_classifier_features_are_the_last_tap(tiny):
    class Pooled(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.LayerNorm(name="last")(x).sum((1, 2, 3))[:, :2]

    def outputs(module, method):
        return isinstance(module, nn.LayerNorm)

    module = Pooled()
    videos = noise(2, 4, 16, 16, 3)
    variables = module.init(nn.module.jax.random.key(0), videos)
    model = Model(module, variables, ModelSpec("p", 4, 16, ("a", "b")), outputs)
    found = evaluation.ask(model, videos)
    assert found.source.startswith("mean of last")
    assert found.features.shape == (2, 3)
    assert evaluation.ask(judge(), VIDEOS).features is None


def test_top_k():
    probabilities = np.array([[0.1, 0.4, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1]])
    assert metrics.in_top(probabilities, [2, 2], 1).tolist() == [False, False]
    assert metrics.in_top(probabilities, [2, 2], 2).tolist() == [True, False]
    assert not metrics.in_top(np.full((1, 4), np.nan), [0], 4).any()


def test_inception_score_of_known_distributions():
    sure = np.eye(4)[[0, 1, 2, 3] * 5]
    assert evaluation.inception_score(sure)["value"] == pytest.approx(4)
    assert evaluation.inception_score(sure[[0] * 9])["value"] == pytest.approx(1)
    unsure = evaluation.inception_score(np.full((9, 4), 0.25))
    assert unsure["value"] == pytest.approx(1)
    assert unsure == {**unsure, "videos": 9, "splits": 1, "classes": 4, "std": None}
    two = np.array([[0.9, 0.1], [0.1, 0.9]])
    expected = np.exp(0.9 * np.log(1.8) + 0.1 * np.log(0.2))
    assert evaluation.inception_score(two)["value"] == pytest.approx(expected)
    split = evaluation.inception_score(sure, splits=5)
    assert split["value"] < 4 and split["std"] > 0, "four videos of a split repeat"
    assert evaluation.inception_score(sure[:2], splits=5)["value"] is None


def test_diversity_is_none_for_copies():
    features = np.array([[1, 2], [1, 2], [2, 4], [1, 0], [0, 3], [5, 5]], float)
    found = evaluation.diversity(features, ["a", "a", "a", "b", "b", "c"])
    assert found == {"a": pytest.approx(0, abs=1e-12), "b": pytest.approx(1)}


def test_a_bootstrap_interval_covers():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        found = metrics.estimate(rng.random(40) < 0.7, seed=trial)
        assert found["low"] <= found["value"] <= found["high"]
        covered += found["low"] <= 0.7 <= found["high"]
    assert 88 <= covered <= 99
    assert metrics.estimate([1, np.nan, 0])["value"] == 0.5
    assert metrics.estimate([1.0, 0.0]) == metrics.estimate([1.0, 0.0]), "one seed"
    none = {"value": None, "low": None, "high": None}
    assert metrics.estimate([]) == metrics.estimate([np.nan]) == none
    assert metrics.ratio([1.0], [0.0]) == none


def test_a_frozen_video_has_no_motion_energy_and_no_change():
    still = judging.frozen(noise(2, 6, 16, 16, 3))
    assert not motion.motion_energy(still).any()
    assert not motion.neighbour_change(still).any()
    blink = np.zeros((1, 4, 8, 8, 3))
    blink[:, ::2] = 1
    assert motion.motion_energy(blink) == 0.25
    assert motion.neighbour_change(blink) == 1
    assert np.isnan(motion.neighbour_change(blink[:, :1])).all()


def test_warping_error_is_small_for_motion_and_large_for_flicker():
    pytest.importorskip("cv2")
    moving, unrelated = textured(6, 2), noise(1, 6, 48, 48, 3)
    change = motion.neighbour_change(moving)
    assert change > 0.05
    assert motion.warping_error(moving) < 0.1 * change
    error = motion.warping_error(unrelated)
    assert error > 0.5 * motion.neighbour_change(unrelated) and error > 0.1
    assert np.isnan(motion.warping_error(unrelated[:, :, :8, :8])).all()
    assert np.isnan(motion.warping_error(unrelated * np.nan)).all()


def test_without_opencv_the_warping_error_is_left_out(monkeypatch):
    find = motion.importlib.util.find_spec
    monkeypatch.setattr(
        motion.importlib.util,
        "find_spec",
        lambda name, *given: None if name == "cv2" else find(name, *given),
    )
    found = evaluate(VIDEOS, [LEFT, RIGHT])
    assert "warping_error" not in found["temporal"]
    (line,) = tables.notes({"runs": {"run": found}})
    assert "OpenCV is missing" in line and "pip install" in line
    assert "warping error" not in page.page({"runs": {"run": found}}).split("<dl>")[1]


def test_nearest_tells_a_copy_from_a_video_of_its_own():
    stimuli = noise(3, 4, 8, 8, 3)
    videos = np.stack([stimuli[0], stimuli[2], np.full_like(stimuli[2], 0.5)])
    copy, other, grey = metrics.nearest(videos, stimuli)
    assert (copy["stimulus"], copy["own"]) == (0, True)
    assert copy["distance"] == pytest.approx(0, abs=1e-5)
    assert copy["correlation"] == pytest.approx(1, abs=1e-5)
    assert (other["stimulus"], other["own"]) == (2, False)
    assert grey["distance"] == pytest.approx(1, abs=0.05)
    assert abs(grey["correlation"]) < 1e-3
    same = metrics.nearest(videos[:2], stimuli[[0, 0]])
    assert same[1]["own"], "copies share a stimulus"


def evaluate(videos, classes, judges=None, **options):
    judges = judges or {"judge@a": judge(), "judge@b": judge(always=1.0)}
    return evaluation.evaluate(videos, classes, judges, partners=PARTNERS, **options)


def test_judges_that_took_part_do_not_count():
    found = evaluate(VIDEOS, [LEFT, RIGHT], marks={"judge@b": "self"})
    assert found["judges"]["judge@b"]["mark"] == "self"
    assert not found["judges"]["judge@b"]["counted"]
    assert found["judges"]["judge@b"]["videos"]["top1"]["value"] == 0.5
    held = found["held_out"]["videos"]
    assert (held["judges"], held["top1"]["value"]) == (1, 1.0)
    assert held["motion"]["all"]["of"] == 4, "two videos, two changes, one judge"
    assert held["motion"]["all"]["both"]["value"] == 1
    both = evaluate(VIDEOS, [LEFT, RIGHT])["held_out"]["videos"]
    assert (both["judges"], both["top1"]["value"]) == (2, 0.75)
    none = dict.fromkeys(("judge@a", "judge@b"), "twin")
    held = evaluate(VIDEOS, [LEFT, RIGHT], marks=none)["held_out"]["videos"]
    assert (held["judges"], held["top1"]["value"]) == (0, None)


def test_order_matters_to_a_judge_that_sees_only_order():
    found = evaluate(VIDEOS, [LEFT, RIGHT], {"judge": judge()})
    order = found["judges"]["judge"]["videos"]["order"]
    assert order["reversed"]["drop"]["value"] == 1
    assert order["frozen"]["top1"]["value"] == 0.5, "no way is the first class"
    blind = evaluate(VIDEOS, [LEFT, RIGHT], {"judge": judge(always=1.0)})
    turns = blind["held_out"]["videos"]["motion"]["all"]
    assert turns["right"]["value"] == turns["flips"]["value"] == 0.5
    assert turns["both"]["value"] == 0, "no motion is seen"
    drops = blind["held_out"]["videos"]["drop"].values()
    assert all(drop["value"] == 0 for drop in drops)


def test_shuffled_frames_are_the_same_in_another_order():
    videos = np.arange(2 * 3, dtype=float).reshape(2, 3, 1, 1, 1)
    for seed in range(20):
        found = judging.shuffled(videos, seed)
        assert (np.sort(found, axis=1) == videos).all()
        assert (found != videos).any((1, 2, 3, 4)).all()
    assert (judging.shuffled(videos[:, :1]) == videos[:, :1]).all()


def test_ceiling_floor_and_ratio():
    stimuli = np.concatenate([VIDEOS] * 3)
    videos = 0.1 + 0.5 * (stimuli - 0.1)
    asked = []
    found = evaluate(
        videos, [LEFT, RIGHT] * 3, stimuli=stimuli, progress=lambda: asked.append(1)
    )
    assert len(asked) == 2 * 3, "two judges about videos, stimuli and noise"
    held = found["held_out"]
    assert held["stimuli"]["top1"]["value"] == held["videos"]["top1"]["value"] == 0.75
    assert held["noise"]["top1"]["value"] < 0.75
    energy = found["temporal"]["motion_energy"]["ratio"]
    assert energy["value"] == pytest.approx(0.25, rel=1e-4)
    assert found["nearest"]["own"]["value"] == 1
    assert found["nearest"]["largest_correlation"] == pytest.approx(1, abs=1e-4)


def test_classes_that_a_judge_does_not_know_are_left_out():
    found = evaluate(VIDEOS, [LEFT, "sitting down"], {"judge": judge()})
    told = found["judges"]["judge"]["videos"]
    assert (told["known"], told["top1"]["value"]) == (1, 1.0)
    assert (told["correct"], told["of"]) == (1, 1)
    (few,) = (judge(),)
    few = Model(few.module, {}, ModelSpec("few", 4, 16, KNOWN[:5]))
    assert (
        evaluation.protocol._right(few, np.eye(5)[:2], [LEFT, LEFT], 5).tolist()
        == [pytest.approx(np.nan, nan_ok=True)] * 2
    ), "of five classes all are among the first five"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ["no videos", "not finite", "one frame"])
def test_json_is_valid_whatever_comes_in(case):
    videos, names = VIDEOS, [LEFT, RIGHT]
    if case == "no videos":
        videos, names = VIDEOS[:0], []
    elif case == "not finite":
        videos = np.full_like(VIDEOS, np.nan)
    else:
        videos = VIDEOS[:, :1]
    found = evaluate(videos, names, stimuli=videos)
    report = {"runs": {"run": found}}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    if case == "not finite":
        assert found["judges"]["judge@a"]["videos"]["top1"]["value"] == 0
        assert found["nearest"]["own"]["value"] is None
    assert all(
        len(row) == len(rows.columns) for rows in tables.of(report) for row in rows.rows
    )
    assert "image/svg+xml" in page.page(
        report, {"run": {"videos": videos, "stimuli": videos}}
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"classes": [LEFT]}, "classes: 1 for 2 videos"),
        ({"videos": VIDEOS[0]}, "videos of shape"),
        ({"stimuli": VIDEOS[:, :2]}, "stimuli of shape"),
        ({"marks": {"x": "self"}}, "marks='x'"),
        ({"classes": [LEFT, 2]}, "classes=2: .* names"),
        ({"videos": VIDEOS.astype(np.uint8)}, "videos of type uint8"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, expected):
    given = {"videos": VIDEOS, "classes": [LEFT, RIGHT]} | change
    with pytest.raises(UserError, match=expected):
        evaluate(**given)


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.told = [], ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.told += data


def test_the_page_escapes_what_others_wrote():
    judges = {EVIL: Model(Judge(), {}, ModelSpec("j", 4, 16, (EVIL, *KNOWN[1:])))}
    found = evaluate(VIDEOS, [EVIL, RIGHT], judges, stimuli=VIDEOS)
    report = {"runs": {EVIL: {**found, "model": EVIL, "verifier": EVIL}}}
    tags = Tags()
    tags.feed(page.page(report, {EVIL: {"videos": VIDEOS, "stimuli": VIDEOS}}))
    assert EVIL in tags.told
    images = [attributes for tag, attributes in tags.found if tag == "img"]
    assert all(image["src"].startswith("data:image/") for image in images)
    pictures = [image for image in images if "image/jpeg" in image["src"]]
    assert len(pictures) == 4, "two videos beside two stimuli"
    assert not any("onerror" in attributes for _, attributes in tags.found)
    outside = ("http://", "https://", "//")
    for _, attributes in tags.found:
        for key in ("src", "href", "xlink:href"):
            assert not (attributes.get(key) or "").startswith(outside)


def test_files_are_judged_beside_arrays():
    found = evaluate(VIDEOS, [LEFT, RIGHT], {"judge": judge()}, saved=VIDEOS[::-1])
    assert found["held_out"]["saved"]["top1"]["value"] == 0
    (line,) = tables.notes({"runs": {"run": found}})
    assert line == "run: held-out top-1 of the mp4 files 0%, of the arrays 100%"


def test_tables_fit_a_terminal_of_80_columns():
    run = evaluate(VIDEOS, [LEFT, RIGHT], stimuli=VIDEOS, marks={"judge@b": "twin"})
    name = "a/rather/long/path/of/a/run/on/some/disk"
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    for rows in tables.of({"runs": {name: run}}):
        console.print(tables.drawn(rows))
    told = console.export_text()
    for word in ("stimuli", "flips", "diversity", "shuffled", "warping", "likeness"):
        assert word in told, "whole, not folded"
    assert "…" not in told and max(map(len, told.splitlines())) <= 80


def test_columns_of_a_table_have_names_of_their_own():
    for rows in tables.of({"runs": {"run": evaluate(VIDEOS, [LEFT, RIGHT])}}):
        assert len(set(rows.columns)) == len(rows.columns)
