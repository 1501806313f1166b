"""A clip that is opened and not yet read."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from leaps_jax.data import limits


@dataclasses.dataclass(frozen=True)
class Frames:
    """The frames of a clip, of which no more than one is held at a time.

    Attributes:
      count: of the frames.
      height: of all frames.
      width: of all frames.
      read: ascending numbers to an iterator over these frames, (h, w, 3) uint8. It
        raises UserError where the clip is broken.
    """

    count: int
    height: int
    width: int
    read: Callable[[Sequence[int]], Iterator[np.ndarray]]

    def whole(self) -> np.ndarray:
        """All frames at full size, (t, h, w, 3) uint8.

        Raises:
          UserError: the clip is broken or too large.
        """
        shape = (self.count, self.height, self.width, 3)
        size = int(np.prod(shape, dtype=object))
        limits.check_kept(size, "it", "trim the clip or make its frames smaller")
        video = np.empty(shape, np.uint8)
        for i, frame in enumerate(self.read(range(self.count))):
            video[i] = frame
        return video


def in_memory(video: np.ndarray) -> Frames:
    """The frames of a clip that was read, (t, h, w, 3) uint8."""
    count, height, width, _ = video.shape
    return Frames(count, height, width, lambda numbers: (video[i] for i in numbers))
