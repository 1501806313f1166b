"""Clips that a user names come back as a model takes them, and bad names say so."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor, wait

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_files import SPEC, circle, refusal, rms, tree, write, write_frames

from leaps_jax import video
from leaps_jax.data import clips
from leaps_jax.data.clips import (
    Clip,
    class_names,
    find_clips,
    load_labelled,
    load_stimuli,
    read_clip,
    read_tree,
)
from leaps_jax.runtime import executable_cache


def test_arrays_need_no_video_packages(tmp_path, monkeypatch):
    np.save(tmp_path / "clip.npy", circle(9))
    (tmp_path / "clip.mp4").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    assert load_stimuli(tmp_path / "clip.npy", SPEC).shape[0] == 1
    assert "pip install" in refusal(read_clip, tmp_path / "clip.mp4")


# Sampling.


def test_load_samples_around_the_middle_and_crops(tmp_path):
    ramp = np.arange(11, dtype=np.uint8)[:, None, None, None] * 20
    path = tmp_path / "ramp.npy"
    np.save(path, np.broadcast_to(ramp, (11, 24, 40, 3)))
    video = load_stimuli([path], SPEC)
    assert video.shape == (1, 4, 24, 24, 3) and video.dtype == np.float32
    np.testing.assert_array_equal(
        video[0, :, 0, 0, 0], np.float32([40, 80, 120, 160]) / np.float32(255)
    )


@pytest.mark.parametrize("height, width", [(24, 48), (48, 24), (31, 77), (12, 20)])
def test_never_stretched(tmp_path, height, width):
    """A circle stays as wide as it is high."""
    y, x = np.mgrid[:height, :width]
    radius = min(height, width) / 3
    inside = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) < radius
    np.save(tmp_path / "disc.npy", np.repeat(inside[None] * 1.0, 8, axis=0))
    disc = load_stimuli(tmp_path / "disc.npy", SPEC)[0, 0, ..., 0]
    assert abs(disc.sum(0).max() - disc.sum(1).max()) < 1.5


def test_short_clips_are_refused_or_looped(tmp_path):
    np.save(tmp_path / "short.npy", circle(5))
    text = refusal(load_stimuli, tmp_path / "short.npy", SPEC)
    assert "short.npy" in text and "5 frames" in text and "need 7" in text
    looped = load_stimuli(tmp_path / "short.npy", SPEC, short="loop")
    assert looped.shape == (1, 4, 24, 24, 3)
    text = refusal(load_stimuli, tmp_path / "short.npy", SPEC, short="x")
    assert text.startswith("short='x'")


def test_several_paths_keep_their_order(tmp_path):
    for name, value in {"b": 10, "a": 20}.items():
        np.save(tmp_path / f"{name}.npy", np.full((8, 24, 24, 3), value, np.uint8))
    paths = [tmp_path / "b.npy", str(tmp_path / "a.npy"), tmp_path / "b.npy"]
    means = load_stimuli(paths, SPEC).mean((1, 2, 3, 4)) * 255
    np.testing.assert_allclose(means, [10, 20, 10], rtol=1e-5)


# Trees.


def test_find_clips(tmp_path):
    root = tree(tmp_path / "data", {"walk": 2, "run": 1})
    write_frames(root / "run" / "zframes", circle(2))
    (root / ".cache").mkdir()
    (root / "walk" / "README.md").write_text("about")
    clips = find_clips(root)
    found = [(c.label, c.path.name) for c in clips]
    expected = [("run", "000.npz"), ("run", "zframes")]
    assert found == [*expected, ("walk", "000.npz"), ("walk", "001.npz")]
    assert [c.label for c in find_clips(root / "walk")] == [None, None]
    assert find_clips(root / "run" / "zframes") == [Clip(root / "run" / "zframes")]


def test_load_labelled(tmp_path):
    root = tree(tmp_path / "data", {"c0": 4, "c1": 4})
    videos, labels = load_labelled(root, SPEC)
    assert videos.shape == (8, 4, 24, 24, 3) and labels == ["c0"] * 4 + ["c1"] * 4
    values = np.rint(videos[:, 0, 0, 0, 0] * 255)
    np.testing.assert_array_equal(values, [0, 1, 2, 3, 40, 41, 42, 43])
    flat = [root / "c1" / "000.npz", root]
    assert load_labelled(flat, SPEC)[1] == [None] + ["c0"] * 4 + ["c1"] * 4


def test_class_names(tmp_path):
    root = tree(tmp_path / "train", {"walk": 1, "run": 1})
    more = tree(tmp_path / "more", {"walk": 1, "jump": 1})
    assert class_names(root) == ("run", "walk")
    assert class_names([root, more]) == ("jump", "run", "walk")


def test_read_tree(tmp_path):
    root = tree(tmp_path / "data", {"run": 3, "walk": 2})
    (root / "walk" / "tall").mkdir()
    write(root / "walk" / "tall.mp4", circle(7, 96, 50))
    (root / "walk" / "tall").rmdir()
    seen = []
    clips, labels, classes = read_tree(
        root, 20, progress=lambda *counts: seen.append(counts)
    )
    assert classes == ("run", "walk") and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1])
    assert seen == [(i, 6) for i in range(1, 7)]
    assert [c.shape for c in clips[:5]] == [(10, 20, 27, 3)] * 5
    assert clips[5].shape == (7, 38, 20, 3) and clips[5].dtype == np.uint8
    assert [c[0, 0, 0, 0] for c in clips[:5]] == [0, 1, 2, 40, 41]


@pytest.mark.parametrize("shape", [(30, 44), (61, 24), (24, 24), (7, 9), (97, 300)])
def test_clips_are_resized_as_videos_are(tmp_path, shape):
    clip = np.random.default_rng(0).integers(0, 256, (7, *shape, 3), np.uint8)
    np.save(tmp_path / "x.npy", clip)
    reference = video.resize_and_crop(jnp.asarray(clip[::2], jnp.float32), SPEC.size)
    (ours,) = load_stimuli(tmp_path / "x.npy", SPEC)
    assert ours.dtype == np.float32
    assert np.abs(ours * 255 - reference).max() < 0.01


def test_read_tree_resizes_as_the_models_do(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (7, 30, 44, 3), np.uint8)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "x.npy", clip)
    (small,), _, _ = read_tree(tmp_path, 24)
    left = (small.shape[2] - 24) // 2
    reference = load_stimuli(tmp_path / "a" / "x.npy", SPEC)[0] * 255
    ours = small[::2, :, left : left + 24].astype(float)
    assert np.abs(ours - reference).max() < 0.51


# Refusals.


def test_missing_unknown_and_empty(tmp_path):
    text = refusal(load_stimuli, tmp_path / "no.mp4", SPEC)
    assert text.startswith("stimulus=") and "no.mp4" in text and "no such file" in text
    (tmp_path / "clip.xyz").write_text("x")
    text = refusal(load_stimuli, tmp_path / "clip.xyz", SPEC)
    assert "clip.xyz" in text and ".mp4" in text and ".npz" in text
    (tmp_path / "empty").mkdir()
    text = refusal(load_labelled, tmp_path / "empty", SPEC)
    assert "no clips" in text
    for name in ("empty.mp4", "empty.npz"):
        (tmp_path / name).write_bytes(b"")
        text = refusal(load_stimuli, tmp_path / name, SPEC)
        assert name in text and "empty" in text
    assert "at least one" in refusal(load_stimuli, [], SPEC)


def test_bad_trees(tmp_path):
    root = tree(tmp_path / "data", {"run": 1, "walk": 1})
    assert "folder of clips" in refusal(read_clip, root)
    for function, arguments in [(read_tree, (20,)), (class_names, ())]:
        text = refusal(function, root / "run", *arguments)
        assert text.startswith("data=") and "class" in text and str(root) in text
    mixed = tree(tmp_path / "mixed", {"run": 1})
    np.save(mixed / "stray.npy", np.zeros((4, 8, 8, 3), np.uint8))
    assert "stray.npy': has no class" in refusal(read_tree, mixed, 20)
    (root / "jump").mkdir()
    text = refusal(read_tree, root, 20)
    assert "'jump' holds no clips" in text
    assert "short_side=0" in refusal(read_tree, root, 0)


# Renderings.


def test_a_rendered_action():
    places = [f"actions:jumping jack/{seed}" for seed in (3, 3, 4)]
    (one, same, other), labels = load_labelled(places, SPEC)
    assert labels == ["jumping jack"] * 3
    assert one.shape == (4, 24, 24, 3) and 0 <= one.min() and one.max() <= 1
    np.testing.assert_array_equal(one, same)
    assert rms(one, other) > 0.05
    assert np.abs(np.diff(one, axis=0)).max() > 0.1, "nothing moves"
    plain = load_stimuli("actions:jumping jack", SPEC)
    np.testing.assert_array_equal(plain, load_stimuli("actions:jumping jack/0", SPEC))


def test_an_action_is_rendered_on_the_processor(monkeypatch):
    """In threads, beside one that uses the GPUs."""
    renderer, devices = clips._renderer, []

    def heard(*args):
        devices.append(jax.config.jax_default_device)
        return renderer(*args)

    monkeypatch.setattr(clips, "_renderer", heard)
    load_stimuli("actions:jumping jack/3", SPEC)
    assert [device.platform for device in devices] == ["cpu"]


def test_a_renderer_is_kept_and_does_not_wait_for_steps(monkeypatch):
    """A renderer is compiled while JAX's cache is on, which it is not for steps."""
    small = dataclasses.replace(SPEC, size=20)
    compile, cached = jax.stages.Lowered.compile, []

    def heard(*args, **options):
        cached.append(jax.config.jax_enable_compilation_cache)
        return compile(*args, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", heard)
    usual = jax.config.jax_enable_compilation_cache
    with ThreadPoolExecutor(1) as pool:
        with executable_cache._without_jax_cache():
            drawn = pool.submit(load_stimuli, "actions:boxing", small)
            wait([drawn], timeout=3)
        assert drawn.result(60).shape == (1, 4, 20, 20, 3)
        assert cached == [usual] == [True]
        with executable_cache._without_jax_cache():
            again = pool.submit(load_stimuli, "actions:kicking", small)
            assert again.result(60).shape == (1, 4, 20, 20, 3)


def test_the_clip_of_the_demo_is_its_rendering(monkeypatch):
    """If renderings were changed on purpose, save `drawn` as actions/demo.npz."""
    name, *seed_and_shape = clips._DEMO
    kept = clips._draw(name, *seed_and_shape).astype(int)
    monkeypatch.setattr(clips, "_DEMO", None)
    drawn = clips._draw(name, *seed_and_shape)
    assert (np.abs(kept - drawn) > 1).mean() < 1e-3


def test_rendered_actions_that_are_none():
    text = refusal(load_stimuli, "actions:jumping jak/3", SPEC)
    assert "stimulus='actions:jumping jak/3'" in text
    assert "did you mean jumping jack" in text
    for seed in ("three", "-1", "1.5"):
        text = refusal(load_stimuli, f"actions:boxing/{seed}", SPEC)
        assert f"'{seed}' is no number" in text and "write boxing/7" in text
