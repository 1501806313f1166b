"""How large a clip may be: what it claims is checked before memory is taken.

Clips come from anywhere, and a small file can claim any size. A clip is read frame by
frame, and what is kept of it is small; these limits bound a frame and what is kept.
"""

import os

from leaps_jax.errors import UserError

PIXELS = 2**24  # of a frame: 4096x4096
FRAMES = 2**16  # of a clip: 36 minutes at 30 frames a second
STORED = 2**33  # bytes of the frames in an array file, which are walked one by one
KEPT = 2**30  # bytes of what is kept: of a clip, or of all clips for a model


def check_frame(height: int, width: int) -> None:
    """Raises UserError where a frame has too many pixels."""
    if height * width > PIXELS:
        side = f"{width}x{height} pixels, the most is {PIXELS}"
        raise UserError(f"has frames of {side}; make them smaller")


def check_frames(count: int) -> None:
    """Raises UserError where a clip has too many frames."""
    if count > FRAMES:
        raise UserError(f"has more than {FRAMES} frames; trim the clip")


def check_stored(size: int) -> None:
    """Raises UserError where the frames of an array file are too many bytes."""
    if size > STORED:
        raise UserError(f"holds {_gib(size)}, the most is {_gib(STORED)}; trim it")


def check_kept(size: int, what: str, remedy: str) -> None:
    """Raises UserError where the bytes that would be kept of `what` are too many."""
    if size > KEPT:
        most = f"the most is {_gib(KEPT)}"
        raise UserError(f"{what} takes {_gib(size)} of memory, {most}; {remedy}")


def check_data_set(size: int, count: int) -> None:
    """Raises UserError where the clips of a data set take half of the memory."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if size > most:
        what = f"its first {count} clips fill half of the memory, {_gib(most)}"
        raise UserError(f"{what}; give fewer or shorter clips")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
