"""Clips come from anywhere: neither names nor bytes nor sizes of them are trusted."""

import contextlib
import io
import os
import random
import socket
import subprocess
import threading
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from clip_files import SPEC, Image, circle, imageio_ffmpeg, refusal, rms, write

from leaps_jax import render
from leaps_jax.data import ffmpeg, finding, limits
from leaps_jax.data.clips import load_labelled, load_stimuli, read_clip, read_tree


def run_ffmpeg(*words):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, words)]
    subprocess.run(command, check=True)


@pytest.fixture
def clip(tmp_path):
    return write(tmp_path / "clip.mp4", circle())


def check_refusal(function, *arguments, **options):
    text = refusal(function, *arguments, **options)
    assert len(text) <= 380 and text.isprintable() and "; " in text
    return text


# Names.


@contextlib.contextmanager
def listener():
    """Yields its port, and a list of who asked; each is turned away."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def turn_away():
            while True:
                try:
                    connection, address = server.accept()
                except OSError:
                    return
                asked.append(address)
                connection.close()

        threading.Thread(target=turn_away, daemon=True).start()
        yield server.getsockname()[1], asked
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("scheme", ["http", "tcp", "rtmp"])
def test_a_folder_with_the_name_of_an_address(tmp_path, monkeypatch, clip, scheme):
    monkeypatch.chdir(tmp_path)
    with listener() as (port, asked):
        path = Path(f"{scheme}:/127.0.0.1:{port}/clip.mp4")
        path.parent.mkdir(parents=True)
        path.write_bytes(clip.read_bytes())
        # FFmpeg would take both for an address
        for name in (path, f"{scheme}://127.0.0.1:{port}/clip.mp4"):
            assert rms(read_clip(name), circle()) < 8
        render.write_video(path.with_name("out.mp4"), circle(), 8)
        assert rms(read_clip(path.with_name("out.mp4")), circle()) < 8
        assert asked == []


NAMES = ["file:x.mp4", "12:30.mp4", "-dash.mp4", "~root.mp4", "pipe:0.mp4", "%d.mp4"]
NAMES += ["concat:a|b.mp4", "a\nb.mp4", "\x1b[31m.mp4", "subfile,,start,1.mp4"]
NAMES += ["b\udcff.mp4", "名.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_a_file(tmp_path, monkeypatch, clip, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.mp4", 255 - circle())  # what file:x.mp4 could be taken for
    Path(name).write_bytes(clip.read_bytes())
    assert rms(read_clip(name), circle()) < 8
    render.write_video(name, circle(), 8)
    assert rms(read_clip(name), circle()) < 8
    Path(name).write_text("no video" * 99)
    check_refusal(read_clip, name)


@pytest.mark.parametrize(
    "script",
    [
        "ffconcat version 1.0\nfile clip.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period>"
        "<BaseURL>{url}</BaseURL></Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_scripts_and_playlists_are_no_clips(tmp_path, clip, script, suffix):
    with listener() as (port, asked):
        path = tmp_path / f"script{suffix}"
        path.write_text(script.format(url=f"http://127.0.0.1:{port}/clip.mp4"))
        assert "not a whole video" in check_refusal(read_clip, path)
        assert asked == []


def test_the_content_says_the_format(tmp_path, clip):
    clip.rename(tmp_path / "clip.avi")
    assert rms(read_clip(tmp_path / "clip.avi"), circle()) < 8


def test_a_pipe_is_not_waited_for(tmp_path):
    for suffix in (".mp4", ".npy"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        assert "regular file" in check_refusal(read_clip, tmp_path / f"pipe{suffix}")


def test_long_and_unprintable_names_of_classes(tmp_path):
    (tmp_path / "a\x1b]0;title\x07").mkdir()
    assert "rename it" in check_refusal(read_tree, tmp_path, 20)
    assert len(os.fsencode(render.safe_name("名" * 300))) <= 120
    check_refusal(read_clip, "x" * 1_000_000 + ".mp4")
    check_refusal(load_stimuli, "", SPEC)


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch, clip):
    def denied(*_):
        raise PermissionError(13, "Permission denied", "secret")

    monkeypatch.setattr(finding, "_children", denied)
    text = check_refusal(load_stimuli, tmp_path, SPEC)
    assert "Permission denied" in text and "permissions" in text
    monkeypatch.setattr(ffmpeg, "check_file", denied)
    assert "Permission denied" in check_refusal(load_stimuli, clip, SPEC)


# Damage.


def flipped(data, draw):
    for _ in range(50):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def hole(data, draw):
    start = draw.randrange(len(data) // 2)
    data[start : start + len(data) // 4] = bytes(len(data) // 4)


def last_byte(data, draw):
    del data[-1]


def half(data, draw):
    del data[draw.randrange(len(data) // 2, len(data) - 1) :]


@pytest.mark.parametrize("damage", [flipped, hole, last_byte, half])
def test_damaged_videos_are_refused(tmp_path, damage):
    """Random frames, so that most bytes matter; 64x48 and 30 frames are 200 kB."""
    video = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), np.uint8)
    whole = tmp_path / "whole.mp4"
    render.write_video(whole, video, 25)
    pixels = read_clip(whole)
    path = tmp_path / "damaged.mp4"
    for seed in range(4):
        data = bytearray(whole.read_bytes())
        damage(data, random.Random(seed))
        path.write_bytes(data)
        assert "whole video" in check_refusal(read_clip, path)
    assert len(pixels) == 30


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "webm", "mov", "gif"])
def test_any_damage_ends_well(tmp_path, suffix):
    """In a line or in frames of the right size; formats without checks hide some."""
    whole = write(tmp_path / f"whole.{suffix}", circle()).read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    for seed in range(3):
        data, draw = bytearray(whole), random.Random(seed)
        (flipped, hole, half)[seed](data, draw)
        path.write_bytes(data)
        try:
            assert read_clip(path).shape[-1] == 3
        except ValueError as error:
            assert str(error).isprintable() and len(str(error)) <= 380


# Videos that are whole.


def test_thumbnails_and_further_streams(tmp_path, clip):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "cover.png")
    cover = ["-map", "1", "-map", "0", "-c", "copy", "-disposition:v:0", "attached_pic"]
    path = tmp_path / "two.mp4"
    run_ffmpeg("-i", clip, "-i", tmp_path / "cover.png", *cover, path)
    assert rms(read_clip(path), circle()) < 8
    other = write(tmp_path / "other.mp4", circle(5, 32, 16))
    run_ffmpeg("-i", clip, "-i", other, "-map", "0", "-map", "1", "-c", "copy", path)
    assert rms(read_clip(path), circle()) < 8


def test_transport_streams(tmp_path, clip):
    path = tmp_path / "stream.mp4"
    run_ffmpeg("-i", clip, "-c", "copy", "-f", "mpegts", path)
    assert rms(read_clip(path), circle()) < 8


@pytest.mark.parametrize(
    "title", ["x, bitrate: 1.5 kb/s", "Stream #0:9: Video: x, 9x9, 1 fps", b"caf\xe9"]
)
def test_titles_change_nothing(tmp_path, clip, title):
    path = tmp_path / "title.mkv"
    title = title if isinstance(title, str) else os.fsdecode(title)
    run_ffmpeg("-i", clip, "-metadata", f"title={title}", "-c", "copy", path)
    assert rms(read_clip(path), circle()) < 8


def test_turned_videos_and_windows(tmp_path, clip):
    path = tmp_path / "turned.mp4"
    run_ffmpeg("-display_rotation", "90", "-i", clip, "-c", "copy", path)
    assert read_clip(path).shape == (12, 64, 48, 3)
    frames = ffmpeg.open_video(clip)
    middle = np.stack(list(frames.read(range(3, 9))))
    np.testing.assert_array_equal(middle, read_clip(clip)[3:9])


# Sizes.


@contextlib.contextmanager
def at_most(megabytes):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


def array_header(shape, dtype="|u1"):
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def test_a_small_archive_of_a_large_clip(tmp_path):
    """A window of it is read, and no more than a frame is held; a bomb is refused."""
    path = tmp_path / "large.npz"
    np.savez_compressed(path, video=np.zeros((300, 200, 1000, 3), np.uint8))
    with at_most(20):
        assert load_stimuli(path, SPEC).shape == (1, 4, 24, 24, 3)
    shape = (10_000, 2000, 2000, 3)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("video.npy", array_header(shape) + bytes(100))
    with at_most(1):
        assert "another size" in check_refusal(load_stimuli, path, SPEC)
    (tmp_path / "claims.npy").write_bytes(array_header(shape) + bytes(100))
    with at_most(1):
        check_refusal(load_stimuli, tmp_path / "claims.npy", SPEC)


def test_limits_of_arrays(tmp_path, monkeypatch):
    path = tmp_path / "clip.npz"
    np.savez(path, video=circle())
    for name, value in {"FRAMES": 11, "PIXELS": 3000, "STORED": 9999}.items():
        with monkeypatch.context() as patch:
            patch.setattr(limits, name, value)
            check_refusal(load_stimuli, path, SPEC)
    assert load_stimuli(path, SPEC).shape[0] == 1


@pytest.mark.parametrize("name, value", [("FRAMES", 11), ("PIXELS", 3000)])
@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_limits_of_videos(tmp_path, monkeypatch, suffix, name, value):
    path = write(tmp_path / f"clip.{suffix}", circle())
    monkeypatch.setattr(limits, name, value)
    assert str(value) in check_refusal(load_stimuli, path, SPEC)


def test_many_large_frames_are_read_one_by_one(tmp_path):
    Image.new("RGB", (1000, 1000), "red").save(tmp_path / "frame_0.png")
    for i in range(1, 60):
        os.link(tmp_path / "frame_0.png", tmp_path / f"frame_{i}.png")
    with at_most(40):
        video = load_stimuli(tmp_path, SPEC)
    np.testing.assert_allclose(video[0, 0, 0, 0], [1, 0, 0])


@pytest.mark.parametrize("side", [4100, 10_000, 20_000])
def test_picture_bombs(tmp_path, side):
    bits = Image.new("1", (side, side))
    bits.save(tmp_path / "frame_0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "frame_0.png" in check_refusal(load_stimuli, tmp_path, SPEC)


def test_more_clips_than_fit(tmp_path, monkeypatch):
    """Refused before the first is read."""
    for i in range(30):
        (tmp_path / f"{i}.npy").write_bytes(b"broken")
    monkeypatch.setattr(limits, "KEPT", 100_000)
    assert "to hold 30 clips" in check_refusal(load_labelled, tmp_path, SPEC)


# Arrays.


def test_arrays_that_are_no_clips(tmp_path):
    text, records = np.full((4, 8, 8, 3), "word"), np.zeros((4, 8, 8), "i4,f4")
    for name, array in {"text": text, "records": records}.items():
        np.save(tmp_path / f"{name}.npy", array)
        np.savez(tmp_path / f"{name}.npz", array)
        for suffix in ("npy", "npz"):
            path = tmp_path / f"{name}.{suffix}"
            assert "type" in check_refusal(load_stimuli, path, SPEC)
    with zipfile.ZipFile(tmp_path / "none.npz", "w") as archive:
        archive.writestr("video", "no array")
        archive.writestr("read.me", "no array")
    assert "no array" in check_refusal(load_stimuli, tmp_path / "none.npz", SPEC)


def test_members_beside_the_clip(tmp_path):
    np.savez(tmp_path / "clip.npz", other=np.zeros(3), video=circle())
    with zipfile.ZipFile(tmp_path / "clip.npz", "a") as archive:
        archive.writestr("about.txt", "no array")
    np.testing.assert_array_equal(read_clip(tmp_path / "clip.npz"), circle())


def test_a_damaged_archive(tmp_path):
    np.savez(tmp_path / "clip.npz", video=circle())
    data = bytearray((tmp_path / "clip.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "clip.npz").write_bytes(data)
    assert "CRC" in check_refusal(read_clip, tmp_path / "clip.npz")
    assert "CRC" in check_refusal(load_stimuli, tmp_path / "clip.npz", SPEC)


@pytest.mark.parametrize("order", ["C", "F"])
def test_orders_of_memory(tmp_path, order):
    array = np.asarray(circle(), order=order)
    np.save(tmp_path / "clip.npy", array)
    np.savez(tmp_path / "clip.npz", array)
    for suffix in ("npy", "npz"):
        np.testing.assert_array_equal(read_clip(tmp_path / f"clip.{suffix}"), circle())
