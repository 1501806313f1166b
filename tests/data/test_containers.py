"""Damage that a container shows, in files that FFmpeg takes for whole."""

import random
import subprocess

import numpy as np
import pytest
from clip_files import Image, circle, imageio_ffmpeg, refusal, rms, write

from leaps_jax.data import containers
from leaps_jax.data.clips import read_clip


def converted(path, to, *words):
    """The bytes of a clip in another container, written to a pipe."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), *words]
    made = subprocess.run([*command, "-f", to, "-"], capture_output=True, check=True)
    return made.stdout


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_a_flipped_bit_of_matroska_is_seen(tmp_path, codec):
    """FFmpeg sees none of them in VP9, and half of them in H.264."""
    suffix = {"h264": "mkv", "vp9": "webm"}[codec]
    source = write(tmp_path / f"source.{suffix}", circle())
    path = tmp_path / "clip.mkv"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(source)]
    subprocess.run([*command, "-c", "copy", str(path)], check=True)
    whole = path.read_bytes()
    assert containers.fault(path) is None
    draw = random.Random(0)
    for _ in range(40):  # of the pictures: a header has a few bits without effect
        data = bytearray(whole)
        place = draw.randrange(len(data) // 4, 3 * len(data) // 4)
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        assert containers.fault(path) == "a part does not fit its checksum"
    assert "is not a whole video" in refusal(read_clip, path)


def test_a_hole_in_a_gif_is_seen(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), np.uint8)
    path = write(tmp_path / "clip.gif", video)
    whole = path.read_bytes()
    for start in range(len(whole) // 8, len(whole) // 2, len(whole) // 8):
        data = bytearray(whole)
        data[start : start + 1000] = bytes(1000)
        path.write_bytes(data)
        assert containers.fault(path) == "a block is of no known kind"
    path.write_bytes(whole[:-1])
    assert containers.fault(path) == "the file is cut short"


def test_whole_files_of_other_writers_are_read(tmp_path):
    mkv, path = write(tmp_path / "clip.mkv", circle()), tmp_path / "other.mkv"
    live = converted(mkv, "matroska", "-c", "copy", "-live", "1")
    none = converted(mkv, "matroska", "-c", "copy", "-write_crc32", "0")
    for content in (live, none, mkv.read_bytes() + bytes(100)):
        path.write_bytes(content)
        assert rms(read_clip(path), circle()) < 8
    frames = [Image.fromarray(frame) for frame in circle()]
    gif = tmp_path / "pillow.gif"
    frames[0].save(gif, save_all=True, append_images=frames[1:], comment=b"x" * 999)
    gif.write_bytes(gif.read_bytes() + bytes(10))
    assert containers.fault(gif) is None and len(read_clip(gif)) == len(frames)


def test_sizes_that_no_file_has(tmp_path):
    path = tmp_path / "x"
    head = b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + bytes(6) + b"\xff"
    for rest in (b"\x1f\x43\xb6\x75\x01" + b"\xfe" * 7, b"\0" * 9, b"\xec\x81", b""):
        path.write_bytes(head + rest)
        assert containers.fault(path) in (None, "the file is cut short")
