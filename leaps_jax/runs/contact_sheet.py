"""Named videos on one picture, and in one video that plays them all.

Knows Pillow, imported only to draw; knows nothing of actions, models or runs.

>>> write_image("sheet.png", strips(["walk"], videos))  # doctest: +SKIP
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from leaps_jax import files, render
from leaps_jax.errors import UserError

_FRAME, _CELL = 96, 160  # pixels that a frame and a playing video have at least
_LETTERS = 15  # pixels of a line's height
_GAP = 2


def strips(names: Sequence[str], videos: np.ndarray, frames: int = 8) -> np.ndarray:
    """A row for each video: its name, then frames of it, evenly spaced in time.

    Args:
      names: of the videos.
      videos: (n, t, h, w, 3) uint8; small ones are enlarged.
      frames: in a row; a video with fewer shows all.

    Returns:
      (H, W, 3) uint8.

    Raises:
      UserError: Pillow is missing.

    >>> strips(["walk", "run"], np.zeros((2, 16, 96, 96, 3), np.uint8)).shape[0]
    194
    """
    n, t = videos.shape[:2]
    frames = min(frames, t)
    chosen = np.linspace(0, t - 1, frames).round().astype(int)
    shown = _enlarged(videos[:, chosen], _FRAME)
    one_by_one = shown.reshape(n * frames, 1, *shown.shape[2:])
    pictures = render.grid(one_by_one, columns=frames, gap=_GAP)[0]
    height = shown.shape[2]
    width = 10 + max(_length(name, _LETTERS) for name in names)
    labels = np.stack([_text(name, height, width, _LETTERS, "right") for name in names])
    column = render.grid(labels[:, None], columns=1, gap=_GAP)[0]
    return np.concatenate([column, pictures], axis=1)


def captioned(
    names: Sequence[str], videos: np.ndarray, columns: int | None = None
) -> np.ndarray:
    """All videos side by side, each below its name.

    Args:
      names: of the videos.
      videos: (n, t, h, w, 3) uint8; small ones are enlarged.
      columns: videos a row; by default as square as can be.

    Returns:
      (t, H, W, 3) uint8.

    Raises:
      UserError: Pillow is missing.
    """
    shown = _enlarged(videos, _CELL)
    n, t, _, width, _ = shown.shape
    height = round(1.6 * _LETTERS)
    captions = np.stack(
        [_text(name, height, width, _LETTERS, "left") for name in names]
    )
    captions = np.broadcast_to(captions[:, None], (n, t, *captions.shape[1:]))
    return render.grid(np.concatenate([captions, shown], axis=2), columns, gap=2 * _GAP)


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes a picture (h, w, 3) uint8; the file appears whole or not at all.

    Raises:
      UserError: Pillow is missing, or the file cannot be written.
    """
    path = Path(path)
    image_module, _, _ = _pillow()

    def encode(file: BinaryIO) -> None:
        image_module.fromarray(image).save(file.name)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, encode, suffix=path.suffix)
    except (OSError, ValueError) as error:
        what = f"the picture cannot be written ({error})"
        raise UserError(f"path={str(path)!r}: {what}; check the folder") from None


def _enlarged(videos: np.ndarray, least: int) -> np.ndarray:
    """By a whole factor, so that a pixel stays a square of one colour."""
    factor = -(-least // videos.shape[-2])
    return videos.repeat(factor, axis=-3).repeat(factor, axis=-2)


def _text(name: str, height: int, width: int, size: int, align: str) -> np.ndarray:
    """(height, width, 3): black on white, smaller where it would not fit."""
    image_module, draw_module, _ = _pillow()
    while _length(name, size) > width - 8 and size > 6:
        size -= 1
    image = image_module.new("RGB", (width, height), "white")
    anchor, x = ("rm", width - 6) if align == "right" else ("lm", 2)
    draw = draw_module.Draw(image)
    draw.text((x, height / 2), name, fill="black", font=_font(size), anchor=anchor)
    return np.asarray(image)


def _length(name: str, size: int) -> int:
    return int(np.ceil(_font(size).getlength(name)))


def _font(size: int):
    return _pillow()[2].load_default(size)


def _pillow():
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        remedy = "pip install pillow"
        raise UserError(f"pictures need {error.name}; {remedy}") from None
    return Image, ImageDraw, ImageFont
