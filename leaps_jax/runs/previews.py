"""previews.zip of a run: what some of its videos looked like on the way.

    0000100/003.jpg    video 3 after 100 steps, its frames side by side

Bounded: a few steps, videos and frames, small pictures. Knows Pillow, imported only to
draw.
"""

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from leaps_jax import files

VIDEOS = 16  # the first of a run
STEPS = 12  # kept between the first and the last
_FRAMES, _SIDE, _QUALITY = 32, 112, 80

#: By step, the strips of the first videos.
Strips = dict[int, list[bytes]]


def strip(video: np.ndarray, side: int = _SIDE) -> bytes:
    """Frames of a video side by side, as JPEG.

    Args:
      video: (t, h, w, 3) in [0, 1]; up to 32 frames of it are taken, evenly spaced.
      side: pixels of a frame, at most.
    """
    from PIL import Image

    t, h, w, _ = video.shape
    chosen = np.linspace(0, t - 1, min(t, _FRAMES)).round().astype(int)
    scale = min(1.0, side / max(h, w))
    size = max(1, round(w * scale)), max(1, round(h * scale))
    row = Image.new("RGB", (len(chosen) * size[0], size[1]))
    for place, frame in enumerate(np.nan_to_num(video[chosen]).clip(0, 1)):
        picture = Image.fromarray((frame * 255).round().astype(np.uint8))
        row.paste(picture.resize(size, Image.Resampling.BOX), (place * size[0], 0))
    content = io.BytesIO()
    row.save(content, "JPEG", quality=_QUALITY)
    return content.getvalue()


def add(path: Path, step: int, videos: np.ndarray, total: int) -> None:
    """Adds the first videos as they are after `step` of `total` steps."""
    found = read(path)
    found[step] = [strip(video) for video in videos[:VIDEOS]]
    _write(path, {s: found[s] for s in kept(list(found), total)})


def kept(steps: list[int], total: int) -> list[int]:
    """The steps to keep: the first, the last, and the first of each share between.

    >>> kept(list(range(0, 1300, 50)), 2400)
    [0, 200, 400, 600, 800, 1000, 1200, 1250]
    """
    share = math.ceil(total / STEPS)
    first_of: dict[int, int] = {}
    for step in sorted(steps):
        first_of.setdefault(step // share, step)
    return sorted({*first_of.values(), max(steps)})


def read(path: Path) -> Strips:
    """The strips of a file; none where it is missing or damaged."""
    found: Strips = {}
    try:
        with zipfile.ZipFile(path) as held:
            for name in sorted(held.namelist()):
                step, _, number = name.removesuffix(".jpg").partition("/")
                strips = found.setdefault(int(step), [])
                if int(number) == len(strips) < VIDEOS:
                    strips.append(held.read(name))
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
    return found


def keep(path: Path, step: int) -> None:
    """Drops what came after `step`: those steps will be done again."""
    found = read(path)
    if any(s > step for s in found):
        _write(path, {s: strips for s, strips in found.items() if s <= step})


def _write(path: Path, found: Strips) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as held:  # JPEG is compressed already
        for step, strips in found.items():
            for number, picture in enumerate(strips):
                held.writestr(f"{step:07d}/{number:03d}.jpg", picture)
    files.write(path, content.getvalue())
