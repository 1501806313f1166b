"""Videos in the folder of a run: mp4 files and comparison.gif."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leaps_jax import render
from leaps_jax.data import clips
from leaps_jax.errors import UserError
from leaps_jax.synthesis import Problem

_COMPARED = 4  # videos in comparison.gif
_WIDTH = 240  # pixels of a video in comparison.gif, at least


def video_files(problem: Problem) -> list[str]:
    """The paths, within the folder of a run, of all that `write_videos` writes."""
    kinds = ["", *([] if problem.stimuli is None else ["_stimulus"])]
    names = render.file_names(problem.names)
    return [f"videos/{name}{kind}.mp4" for name in names for kind in kinds]


def write_videos(
    folder: Path, problem: Problem, numbers: np.ndarray, videos: np.ndarray
) -> None:
    """Writes videos, and the stimuli that they were made from, as mp4 files.

    Args:
      folder: of the run.
      problem: of the run.
      numbers: (n,) positions of the videos among those of the run.
      videos: (n, t, h, w, 3) in [0, 1].
    """
    names = render.file_names(problem.names)
    for number, video in zip(numbers, videos, strict=True):
        path = folder / "videos" / f"{names[number]}.mp4"
        render.write_video(path, video, problem.model.spec.fps)
        if problem.stimuli is not None:
            path = path.with_name(f"{names[number]}_stimulus.mp4")
            render.write_video(path, problem.stimuli[number], problem.model.spec.fps)


def read_videos(
    folder: Path, classes: Sequence[str], videos: np.ndarray
) -> np.ndarray | None:
    """Reads the mp4 files of all videos.

    Args:
      folder: of the run.
      classes: n class names of the videos.
      videos: (n, t, h, w, 3) that were written.

    Returns:
      (n, t, h, w, 3) float32 in [0, 1], or None where a file is missing or broken.
    """
    paths = [folder / "videos" / f"{name}.mp4" for name in render.file_names(classes)]
    if render.can_write() or not all(path.is_file() for path in paths):
        return None
    try:
        decoded = [clips.read_clip(path, argument="run") for path in paths]
    except UserError:
        return None
    _, t, h, w, _ = videos.shape  # an odd height or width was made even
    cut = [clip[:t, :h, :w].astype(np.float32) / 255 for clip in decoded]
    return np.stack(cut) if {clip.shape for clip in cut} == {(t, h, w, 3)} else None


def write_preview(folder: Path, problem: Problem, videos: np.ndarray) -> None:
    """Writes preview.mp4, some videos as they are now, where that is possible."""
    if render.can_write() is None:
        render.write_video(
            folder / "preview.mp4", render.grid(videos), problem.model.spec.fps
        )


def write_comparison(folder: Path, problem: Problem, videos: np.ndarray) -> None:
    """Writes comparison.gif, the first stimuli beside their videos, if there are any.

    Args:
      folder: of the run.
      problem: of the run.
      videos: (n, t, h, w, 3) in [0, 1], all of the run.
    """
    if problem.stimuli is None:
        return
    pairs = render.side_by_side(problem.stimuli[:_COMPARED], videos[:_COMPARED])
    factor = max(1, round(_WIDTH / videos.shape[2]))
    enlarged = pairs.repeat(factor, axis=1).repeat(factor, axis=2)
    render.write_video(folder / "comparison.gif", enlarged, problem.model.spec.fps)
