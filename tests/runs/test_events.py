"""--tensorboard: what a viewer reads back, also of a run that was resumed."""

import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from leaps_jax import Config, objectives
from leaps_jax.errors import UserError
from leaps_jax.runs import events, metrics
from leaps_jax.runs import folder as runs
from leaps_jax.runtime.engine import Engine
from leaps_jax.runtime.executable_cache import ExecutableCache
from leaps_jax.synthesis import prepare
from leaps_jax.zoo import states

pytest.importorskip("tensorboard")

STEPS = 30
CONFIG = Config(steps=STEPS, steps_per_call=10)


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch):
    """TensorBoard reads by its own means, as where TensorFlow is not installed."""
    name = "tensorboard.compat.notf"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Compiled steps, kept from test to test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("key")))
        yield ExecutableCache(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def execute(tmp_path, tiny, programs):
    objective = objectives.activation_maximization(CONFIG)
    problem = prepare(tiny, None, [1, 2], config=CONFIG, objective=objective)

    def run():
        how = {"save_every": 0.0, "preview_every": 10}
        how["engine"] = Engine(problem, executables=programs)
        how["tensorboard"] = tmp_path / "events"
        return runs.execute(tmp_path / "run", problem, {"name": "events"}, {}, **how)

    return run


def read(folder):
    """What TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing import event_accumulator

    everything = {event_accumulator.SCALARS: 0, event_accumulator.IMAGES: 0}
    return event_accumulator.EventAccumulator(str(folder), everything).Reload()


def written(folder):
    """All steps that some event file has of "total"."""
    from tensorboard.backend.event_processing import event_file_loader

    steps = []
    for path in sorted(folder.iterdir()):
        for event in event_file_loader.RawEventFileLoader(str(path)).Load():
            from tensorboard.compat.proto import event_pb2

            found = event_pb2.Event.FromString(event)
            tags = [value.tag for value in found.summary.value]
            steps += [found.step] * tags.count("total")
    return steps


def frames(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == "GIF" and image.info["loop"] == 0
        shown = []
        for number in range(image.n_frames):
            image.seek(number)
            shown.append(np.asarray(image.convert("RGB"), np.float32) / 255)
    return np.stack(shown)


def assert_is_whole(folder, run):
    found = read(folder)
    lines = metrics.read(run / "metrics.jsonl")
    names = set(metrics.means(lines[0]))
    assert {"total", "confidence", "gradient", "raw/class_logit"} < names
    assert set(found.Tags()["scalars"]) == names
    for name in names:
        scalars = found.Scalars(name)
        assert [one.step for one in scalars] == [10, 20, 30]
        known = [metrics.means(line)[name] for line in lines]
        np.testing.assert_allclose([one.value for one in scalars], known, rtol=1e-5)
    assert found.Tags()["images"] == ["videos/000_jack", "videos/001_jump"]
    with np.load(run / "videos.npz") as arrays:
        videos = arrays["videos"]
    for name, video in zip(found.Tags()["images"], videos, strict=True):
        shown = found.Images(name)
        assert [one.step for one in shown] == [0, 10, 20, 30]
        decoded = frames(shown[-1].encoded_image_string)
        assert decoded.shape == video.shape
        assert np.abs(decoded - video).mean() < 0.06, "256 colours a frame"


def test_numbers_and_videos_are_read_back(execute, tmp_path):
    assert execute()["status"] == "finished"
    assert_is_whole(tmp_path / "events", tmp_path / "run")
    (file,) = (tmp_path / "events").iterdir()
    before = file.read_bytes()
    execute()
    assert [p.read_bytes() for p in (tmp_path / "events").iterdir()] == [before]


def test_a_run_that_is_resumed_has_each_step_once(execute, tmp_path, monkeypatch):
    save = states.save

    def full(folder, step, state):
        if step > 10:
            raise OSError("no room")
        save(folder, step, state)

    monkeypatch.setattr(states, "save", full)
    with pytest.raises(OSError, match="no room"):
        execute()
    monkeypatch.setattr(states, "save", save)
    folder = tmp_path / "events"
    (first,) = folder.iterdir()
    first.write_bytes(first.read_bytes()[:-7])  # a kill cuts the last record
    execute()
    assert sorted(written(folder)) == [10, 20, 20, 30], "20 was done twice"
    assert_is_whole(folder, tmp_path / "run")


def test_a_run_that_was_killed_before_its_first_state_begins_again(
    execute, tmp_path, monkeypatch
):
    whole = Engine.run

    def dying(*_, **__):
        raise OSError("killed")
        yield

    monkeypatch.setattr(Engine, "run", dying)
    with pytest.raises(OSError, match="killed"):
        execute()
    monkeypatch.setattr(Engine, "run", whole)
    execute()
    assert len(list((tmp_path / "events").iterdir())) == 2
    assert_is_whole(tmp_path / "events", tmp_path / "run")


def test_only_its_own_events_are_gone_on_with_or_deleted(tmp_path):
    one, other = {"seed": 1}, {"seed": 2}
    folder = tmp_path / "events"
    events.check(folder, one)
    events.Events(folder, one).close()
    events.check(folder, one)
    with pytest.raises(UserError, match="tensorboard='.*' *: holds events of another"):
        events.check(folder, other)
    events.check(folder, other, overwrite=True)
    events.Events(folder, other, overwrite=True).close()
    assert len(list(folder.iterdir())) == 1
    events.check(folder, other)
    foreign = folder / "events.out.tfevents.1.host"
    foreign.write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds events of another run"):
            events.check(folder, other, overwrite)
    events.Events(folder, other, overwrite=True).close()
    assert foreign.read_text() == "precious"


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "events"):
        with pytest.raises(UserError, match="is a file.*choose another"):
            events.check(folder, {})
    with pytest.raises(UserError, match="null byte"):
        events.check(tmp_path / "a\0b", {})


def test_without_the_package_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'leaps_jax\[tensorboard\]'"):
        events.check(tmp_path, {})


def test_a_gif_shows_a_video_as_it_is():
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 64, dtype=np.float32)
    video = np.stack([np.roll(np.tile(ramp, (64, 1)), 8 * t, 1) for t in range(6)])
    video = np.stack([video, 1 - video, np.full_like(video, 0.5)], -1)
    video[:, 20:30, 20:30] = rng.random(3)
    assert np.abs(frames(events.gif(video, 15)) - video).max() < 0.1
