"""Videos are written whole, playable and true to their pixels."""

import subprocess

import numpy as np
import pytest

from leaps_jax import render
from leaps_jax.errors import UserError

mediapy = pytest.importorskip("mediapy")
imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")


def circle(frames=12, height=48, width=64):
    return mediapy.to_uint8(mediapy.moving_circle((height, width), frames))


def read(path):
    mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())
    return np.asarray(mediapy.read_video(path))


def rms(a, b):
    return float(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.mark.parametrize("frames, height, width", [(12, 48, 64), (5, 182, 182)])
@pytest.mark.parametrize("fps", [3, 12.5])
def test_mp4(tmp_path, frames, height, width, fps):
    video = circle(frames, height, width)
    render.write_video(tmp_path / "new" / "a.mp4", video, fps)
    back = read(tmp_path / "new" / "a.mp4")
    assert back.shape == video.shape and rms(back, video) < 8
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("height, width", [(49, 63), (33, 64), (1, 1)])
def test_odd_sizes_are_padded(tmp_path, height, width):
    video = circle(5, height, width) if height > 1 else np.full((5, 1, 1, 3), 90)
    video = video.astype(np.uint8)
    render.write_video(tmp_path / "odd.mp4", video, 8)
    back = read(tmp_path / "odd.mp4")
    assert back.shape == (5, height + height % 2, width + width % 2, 3)
    assert rms(back[:, :height, :width], video) < 8
    if height % 2 and height > 1:
        assert rms(back[:, height], back[:, height - 1]) < 8  # a repeat, no border


def test_mp4_is_what_browsers_play(tmp_path):
    render.write_video(tmp_path / "a.mp4", circle(), 8)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "a.mp4")]
    about = subprocess.run(command, capture_output=True, text=True).stderr
    assert "h264" in about and "yuv420p" in about and "8 fps" in about
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_noise_survives(tmp_path):
    """Synthesised videos are far from smooth."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.2, 0.8, (8, 64, 64, 1)).astype(np.float32)
    video = np.repeat(noise, 3, axis=-1)  # grey, since 4:2:0 halves colour anyway
    render.write_video(tmp_path / "noise.mp4", video, 8)
    assert rms(read(tmp_path / "noise.mp4") / 255, video) < 0.03


def test_floats_are_clipped(tmp_path):
    video = np.stack([np.full((32, 32, 3), v) for v in (-1.0, 0.0, 0.5, 1.0, 2.0)])
    render.write_video(tmp_path / "a.mp4", video, 8)
    levels = read(tmp_path / "a.mp4").mean((1, 2, 3))
    np.testing.assert_allclose(levels, [0, 0, 128, 255, 255], atol=3)


def test_gif(tmp_path):
    video = circle(6, 33, 47)
    render.write_video(tmp_path / "a.gif", video, 10)
    back = read(tmp_path / "a.gif")
    assert back.shape == video.shape and rms(back, video) < 8


def test_overwrites(tmp_path):
    for value in (0, 200):
        video = np.full((4, 16, 16, 3), value, np.uint8)
        render.write_video(tmp_path / "a.mp4", video, 8)
    assert abs(read(tmp_path / "a.mp4").mean() - 200) < 3


def test_refusals(tmp_path, capfd):
    video = circle(3)
    path = tmp_path / "a.mp4"
    folder = tmp_path / "file"
    folder.write_text("no folder")
    cases = [
        ((tmp_path / "a.avi", video, 8), "a.avi"),
        ((path, video, 0), "fps=0"),
        ((path, video, float("nan")), "fps=nan"),
        ((path, video[0], 8), "video=(48, 64, 3)"),
        ((path, video[:0], 8), "video=(0, 48, 64, 3)"),
        ((path, video.astype(np.int32), 8), "video=int32"),
        ((path, np.full(video.shape, np.nan), 8), "non-finite"),
        ((folder / "a.mp4", video, 8), "cannot be written"),
    ]
    for arguments, expected in cases:
        with pytest.raises(UserError) as caught:
            render.write_video(*arguments)
        assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert capfd.readouterr() == ("", "")


def test_failed_encoding_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_text("old")

    class Failing:
        @staticmethod
        def write_video(partial, *args, **kwargs):
            partial.write_text("half")
            raise RuntimeError("Error writing 'a.mp4':\nno space left\n")

    monkeypatch.setattr(render, "_mediapy", lambda: Failing)
    with pytest.raises(UserError, match="no space left") as caught:
        render.write_video(path, circle(3), 8)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_can_write(tmp_path, monkeypatch):
    assert render.can_write() is None
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    assert "pip install" in render.can_write()
    with pytest.raises(UserError, match="imageio_ffmpeg"):
        render.write_video(tmp_path / "a.mp4", circle(3), 8)


@pytest.mark.parametrize("dtype, white", [(np.uint8, 255), (np.float32, 1)])
def test_grid(dtype, white):
    videos = np.arange(5)[:, None, None, None, None] * np.ones((5, 2, 4, 6, 3))
    canvas = render.grid(videos.astype(dtype), columns=3, gap=1)
    assert canvas.shape == (2, 9, 20, 3) and canvas.dtype == dtype
    for i in range(5):
        top, left = i // 3 * 5, i % 3 * 7
        assert (canvas[:, top : top + 4, left : left + 6] == i).all()
    assert (canvas[:, 4] == white).all() and (canvas[:, 5:, 14:] == white).all()
    assert render.grid(videos).shape == (2, 2 * 4 + 2, 3 * 6 + 4, 3)
    assert render.grid(videos[:1], columns=9).shape == (2, 4, 6, 3)


def test_grid_refusals():
    videos = np.zeros((2, 2, 4, 6, 3))
    for arguments in [(videos[0],), (videos, 0), (videos, 1, -1)]:
        with pytest.raises(UserError):
            render.grid(*arguments)


def test_side_by_side():
    stimuli, videos = np.zeros((3, 2, 4, 6, 3)), np.ones((3, 2, 4, 6, 3)) / 2
    shown = render.side_by_side(stimuli, videos)
    assert shown.shape == (2, 3 * 4 + 4, 14, 3)
    assert (shown[:, :4, :6] == 0).all() and (shown[:, :4, 8:] == 0.5).all()
    with pytest.raises(UserError, match="stimuli="):
        render.side_by_side(stimuli[:2], videos)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("Playing Guitar", "Playing_Guitar"),
        ("../../etc/passwd", "etc_passwd"),
        ("tango (dance)", "tango_dance"),
        ("弹吉他", "弹吉他"),
        ("cafe\u0301", "café"),
        ("a\nb\0c", "a_b_c"),
        ("...", "unnamed"),
        ("", "unnamed"),
        ("x" * 300, "x" * 60),
    ],
)
def test_safe_name(name, expected):
    assert render.safe_name(name) == expected
