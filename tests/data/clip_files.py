"""Clips in files of every kind, for the tests of what reads them."""

import numpy as np
import pytest

from leaps_jax.errors import UserError
from leaps_jax.model import ModelSpec

mediapy = pytest.importorskip("mediapy")
imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
Image = pytest.importorskip("PIL.Image")

SPEC = ModelSpec("any", frames=4, size=24, stride=2, classes=("a", "b"))
CODECS = {"mp4": "h264", "mov": "h264", "mkv": "h264", "avi": "mpeg4", "webm": "vp9"}
VIDEOS = [*CODECS, "gif"]


def circle(frames=12, height=48, width=64):
    mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())
    return mediapy.to_uint8(mediapy.moving_circle((height, width), frames))


def write(path, video, fps=25.0):
    suffix = path.suffix[1:].lower()
    if suffix == "gif":
        mediapy.write_video(path, video, fps=fps, codec="gif")
    else:
        quality = {"crf": 10} if suffix == "webm" else {"qp": 2}
        mediapy.write_video(path, video, fps=fps, codec=CODECS[suffix], **quality)
    return path


def write_frames(folder, video, suffix="png"):
    folder.mkdir(parents=True)
    for i, frame in enumerate(video):
        Image.fromarray(frame).save(folder / f"frame_{i}.{suffix}")
    return folder


def tree(root, counts):
    """A `<class>/<clip>` tree; clip i of class j is grey of value 40 j + i."""
    for j, (label, count) in enumerate(counts.items()):
        (root / label).mkdir(parents=True)
        for i in range(count):
            clip = np.full((10, 30, 40, 3), 40 * j + i, np.uint8)
            np.savez(root / label / f"{i:03}.npz", video=clip)
    return root


def refusal(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def rms(a, b):
    return float(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)))
