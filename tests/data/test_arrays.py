"""NumPy files and folders of frames come back as written, and bad ones say so."""

import contextlib
import gc
import threading

import numpy as np
import pytest
from clip_files import SPEC, Image, circle, refusal, rms, write_frames

from leaps_jax.data import arrays
from leaps_jax.data.clips import load_stimuli, read_clip


def test_frames_in_natural_order(tmp_path):
    video = np.arange(12, dtype=np.uint8)[:, None, None, None] * 20
    video = np.broadcast_to(video, (12, 6, 8, 3))
    folder = write_frames(tmp_path / "frames", video)
    (folder / ".hidden.png").write_text("not an image")
    (folder / "notes.txt").write_text("not a frame")
    np.testing.assert_array_equal(read_clip(folder), video)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_frames(tmp_path, suffix):
    video = circle(3)
    folder = write_frames(tmp_path / "frames", video, suffix)
    assert rms(read_clip(folder), video) < 12


def test_frames_with_alpha_palette_and_16_bit_grey(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    alpha = np.concatenate([rgb, np.full((6, 8, 1), 9, np.uint8)], axis=-1)
    Image.fromarray(grey).save(tmp_path / "1.png")
    Image.fromarray(alpha).save(tmp_path / "2.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "3.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "4.png")
    np.testing.assert_array_equal(read_clip(tmp_path), np.stack([rgb] * 4))


@pytest.mark.parametrize("key", ["video", "frames", "anything"])
def test_npz_keys(tmp_path, key):
    video = circle(3)
    arrays = {"zzz": np.zeros(3), key: video} if key != "anything" else {key: video}
    np.savez(tmp_path / "clip.npz", **arrays)
    np.testing.assert_array_equal(read_clip(tmp_path / "clip.npz"), video)


def test_array_types(tmp_path):
    video = circle(3)
    path = tmp_path / "clip.npy"
    variants = {
        "float32": (video / 255).astype(np.float32),
        "float16": (video / 255).astype(np.float16),
        "int64": video.astype(np.int64),
        "rgba": np.concatenate([video, video[..., :1]], axis=-1),
    }
    for name, array in variants.items():
        np.save(path, array)
        np.testing.assert_array_equal(read_clip(path), video, name)
    grey = video[..., 0]
    for array in (grey, grey[..., None]):
        np.save(path, array)
        expected = np.repeat(grey[..., None], 3, axis=-1)
        np.testing.assert_array_equal(read_clip(path), expected)


def test_bad_arrays(tmp_path):
    clip = np.zeros((4, 8, 8, 3), np.float32)
    infinite = clip.copy()
    infinite[1, 2, 3, 0] = np.inf
    cases = {
        "nan": (np.full_like(clip, np.nan), "non-finite"),
        "inf": (infinite, "non-finite"),
        "bytes": (clip + 200, "[0, 1]"),
        "negative": (clip - 1, "[0, 1]"),
        "wide": (clip.astype(np.int32) + 256, "0..255"),
        "bool": (clip > 0, "uint8"),
        "image": (clip[0], "(8, 8, 3)"),
        "batch": (clip[None], "(1, 4, 8, 8, 3)"),
        "none": (clip[:0], "(0, 8, 8, 3)"),
        "planes": (np.zeros((4, 3, 8, 8)), "(4, 3, 8, 8)"),
    }
    for name, (array, expected) in cases.items():
        np.save(tmp_path / f"{name}.npy", array)
        text = refusal(read_clip, tmp_path / f"{name}.npy")
        assert f"{name}.npy" in text and expected in text
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("no array")
    np.savez(tmp_path / "whole.npz", video=clip)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("pickle.npy", "nothing.npz", "text.npz", "cut.npz"):
        assert name in refusal(load_stimuli, tmp_path / name, SPEC)


def test_bad_frames(tmp_path):
    folder = write_frames(tmp_path / "frames", circle(3))
    Image.new("RGB", (5, 7)).save(folder / "frame_3.png")
    text = refusal(read_clip, folder)
    assert "frame_3.png is 5x7" in text and "64x48" in text
    (folder / "frame_3.png").write_text("no image")
    assert "frame_3.png is no image" in refusal(read_clip, folder)
    whole = (folder / "frame_1.png").read_bytes()
    (folder / "frame_3.png").write_bytes(whole[: len(whole) // 2])
    assert "frame_3.png is no image" in refusal(read_clip, folder)


@contextlib.contextmanager
def interrupted_by(work):
    """Whenever this thread collects garbage, which it does often, another works."""
    go, done, over = threading.Semaphore(0), threading.Semaphore(0), threading.Event()
    own = threading.current_thread()

    def working():
        while go.acquire() and not over.is_set():
            work()
            done.release()

    def yielding(phase, _):
        if phase == "start" and threading.current_thread() is own:
            go.release()
            done.acquire(timeout=0.005)  # the other may wait for this thread

    other, before = threading.Thread(target=working), gc.get_threshold()
    other.start()
    gc.freeze()  # so that a collection has little to do
    gc.callbacks.append(yielding)
    gc.set_threshold(5)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(yielding)
        gc.unfreeze()
        over.set()
        go.release()
        other.join()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_headers_are_read_by_one_thread_at_a_time(tmp_path, suffix):
    """Python 3.11 counts the depth of all threads' syntax trees in one number."""
    path = tmp_path / f"clip.{suffix}"
    {"npy": np.save, "npz": np.savez}[suffix](path, np.zeros((4, 8, 8, 3), np.uint8))
    with interrupted_by(lambda: arrays.open_array(path)):
        assert [arrays.open_array(path).count for _ in range(3)] == [4] * 3
