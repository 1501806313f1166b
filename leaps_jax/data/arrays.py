"""Clips as arrays: NumPy files, and folders of frames.

Pillow is imported only to read frames; NumPy files load without it.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from leaps_jax.errors import UserError, last_line

SUFFIXES = (".npy", ".npz")
FRAMES = (".png", ".jpg", ".jpeg", ".webp")


def read_array(path: Path) -> np.ndarray:
    """Reads a NumPy file; of a `.npz`, `video`, `frames` or the first array.

    Returns:
      (t, h, w, 3) uint8.

    Raises:
      UserError: the file is broken or holds no clip; the message leaves it to the
        caller to name the file.
    """
    return as_rgb(_read_array(path))


def _read_array(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if not loaded.files:
                raise UserError("holds no array; save one (t, h, w, 3) array")
            keys = [k for k in ("video", "frames") if k in loaded.files]
            return loaded[(keys or loaded.files)[0]]
    except UserError:
        raise
    # numpy and zipfile raise what they like at a damaged file.
    except Exception as error:
        reason = last_line(str(error)).partition(". ")[0]
        what = f"is no array file ({reason}); save the clip with np.savez"
        raise UserError(what) from None


def as_rgb(array: np.ndarray) -> np.ndarray:
    """An array of pixels as (t, h, w, 3) uint8.

    Args:
      array: (t, h, w) or (t, h, w, 1), grey; (t, h, w, 3) or (t, h, w, 4), whose alpha
        is dropped. Integers in 0..255 or floats in [0, 1].

    Raises:
      UserError: the shape, the type or the values are others.
    """
    shape = f"has shape {array.shape}"
    if array.ndim == 3 and array.shape[-1] not in (3, 4):
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise UserError(f"{shape}; a clip is (t, h, w, 3)")
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(low) or not np.isfinite(high):
            raise UserError("has non-finite pixels; replace the NaN or infinite values")
        if low < -1e-3 or high > 1 + 1e-3:
            found = f"has float pixels from {low:.4g} to {high:.4g}"
            raise UserError(f"{found}; scale them to [0, 1] or save 0..255 as uint8")
        array = np.rint(np.clip(array, 0, 1).astype(np.float32) * 255)
    elif not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"has pixels of type {array.dtype}; save uint8 or float32")
    elif low < 0 or high > 255:
        raise UserError(f"has pixels from {low} to {high}; whole numbers go 0..255")
    array = array[..., :3].astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def is_frame(path: Path) -> bool:
    """Whether a file is a frame of a clip, by its name."""
    return path.suffix.lower() in FRAMES and path.name[0] != "." and path.is_file()


def read_frames(folder: Path) -> np.ndarray:
    """Reads a folder of frames, frame_2 before frame_10.

    Returns:
      (t, h, w, 3) uint8.

    Raises:
      UserError: a frame is no image, or of another size than the first; the message
        leaves it to the caller to name the folder.
    """
    from PIL import Image

    frames: list[np.ndarray] = []
    for path in sorted(filter(is_frame, sorted(folder.iterdir())), key=_natural_order):
        try:
            with Image.open(path) as image:
                if image.mode.startswith("I"):  # 16-bit grey, which convert() clips
                    frame = (np.asarray(image) >> 8).astype(np.uint8)
                    frame = np.repeat(frame[..., None], 3, axis=-1)
                else:
                    frame = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            reason = last_line(str(error))
            raise UserError(f"{path.name} is no image ({reason}); replace it") from None
        if frames and frame.shape != frames[0].shape:
            (h, w), (h0, w0) = frame.shape[:2], frames[0].shape[:2]
            sizes = f"{path.name} is {w}x{h} and the first frame is {w0}x{h0}"
            raise UserError(f"{sizes}; make all frames the same size")
        frames.append(frame)
    return np.stack(frames)


def _natural_order(path: Path) -> list[Any]:
    return [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", path.name)]
