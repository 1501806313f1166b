"""Video files come back as they were written, and broken ones say so."""

import numpy as np
import pytest
from clip_files import SPEC, VIDEOS, Image, circle, mediapy, refusal, rms, write

from leaps_jax.data import limits
from leaps_jax.data.clips import load_stimuli, read_clip


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize("fps", [5.0, 29.97])
def test_videos_come_back(tmp_path, suffix, fps):
    video = circle()
    read = read_clip(write(tmp_path / f"clip.{suffix}", video, fps))
    assert read.dtype == np.uint8 and read.shape == video.shape
    for i in range(len(video)):  # and in the order they were written
        errors = [rms(read[i], frame) for frame in video]
        assert errors[i] < 8 and errors[i] == min(errors)


@pytest.mark.parametrize("height, width", [(49, 63), (33, 64), (182, 17)])
def test_odd_sizes(tmp_path, height, width):
    video = circle(5, height, width)
    read = read_clip(write(tmp_path / "odd.mp4", video))
    assert read.shape == video.shape and rms(read, video) < 8


def test_gif_with_uneven_durations(tmp_path):
    images = [Image.fromarray(frame) for frame in circle(6)]
    path = tmp_path / "slow.gif"
    durations = [100, 20, 300, 50, 50, 1000]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations)
    assert len(read_clip(path)) == 6


@pytest.mark.parametrize("suffix", VIDEOS)
def test_text_with_the_name_of_a_video(tmp_path, suffix, capfd):
    path = tmp_path / f"text.{suffix}"
    path.write_text("This is no video.\n" * 40)
    text = refusal(load_stimuli, path, SPEC)
    assert str(path) in text and "video" in text and " @ 0x" not in text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", VIDEOS)
def test_truncated_videos(tmp_path, suffix, capfd):
    whole = write(tmp_path / f"whole.{suffix}", circle(40)).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: len(whole) * 3 // 5])
    assert str(path) in refusal(load_stimuli, path, SPEC)
    assert capfd.readouterr() == ("", "")


def test_truncated_mp4_with_its_index_in_front(tmp_path):
    arguments = {"fps": 25, "qp": 5, "ffmpeg_args": ["-movflags", "+faststart"]}
    circle(1)
    mediapy.write_video(tmp_path / "a.mp4", circle(40), **arguments)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert "not a whole video" in refusal(read_clip, tmp_path / "cut.mp4")


def test_video_without_pictures(tmp_path):
    import wave

    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 800, "NONE", ""))
        sound.writeframes(bytes(1600))
    (tmp_path / "sound.wav").rename(tmp_path / "sound.mp4")
    assert "sound.mp4" in refusal(read_clip, tmp_path / "sound.mp4")


def test_clips_too_large_for_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "long.mp4", circle())
    monkeypatch.setattr(limits, "KEPT", 1000)
    assert "trim the clip" in refusal(read_clip, path)
