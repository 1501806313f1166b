"""Resizes clips on the host, by Pillow, which is imported only then.

Each clip has another shape, for which JAX would compile anew, and clips are read while
the device works.
"""

import numpy as np

# Pillow's float images resized bilinearly are those of `jax.image.resize` to 0.01 of
# 255; `mediapy.resize_video` is another filter, Lanczos, and rounds to 8 bits.


def resize_and_crop(frames: np.ndarray, size: int) -> np.ndarray:
    """`video.resize_and_crop` of (t, h, w, 3) uint8, as float32 up to 255."""
    h, w = frames.shape[1:3]
    height, width = short_side(h, w, size)
    top, left = (height - size) // 2, (width - size) // 2
    box = (
        left * w / width,
        top * h / height,
        (left + size) * w / width,
        (top + size) * h / height,
    )
    return np.stack([_resized(frame, size, size, box) for frame in frames])


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """The height and width of a frame whose short side becomes `size`."""
    short = min(height, width)
    return round(height * size / short), round(width * size / short)


def resize_short_side(frames: np.ndarray, size: int) -> np.ndarray:
    """Resizes (t, h, w, 3) uint8, bilinear and antialiased, and keeps the aspect."""
    h, w = frames.shape[1:3]
    if min(h, w) == size:
        return frames
    height, width = short_side(h, w, size)
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        resized[i] = np.rint(_resized(frame, height, width))
    return resized


def _resized(
    frame: np.ndarray,
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """(h, w, 3) uint8, or a box of it (left, top, right, bottom), as float32."""
    from PIL import Image

    resized = np.empty((height, width, 3), np.float32)
    for c in range(3):
        channel = Image.fromarray(frame[..., c]).convert("F")
        channel = channel.resize((width, height), Image.Resampling.BILINEAR, box)
        resized[..., c] = np.asarray(channel)
    return resized
