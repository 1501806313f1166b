"""videos.npz of a run: its videos, stimuli and labels."""

from pathlib import Path

import jax
import numpy as np

from leaps_jax import files
from leaps_jax.runtime import multihost
from leaps_jax.synthesis import Problem


def has_videos(folder: Path) -> bool:
    """Whether the file is there, and whole."""
    try:
        path = folder / "videos.npz"
        with path.open("rb") as file, np.load(file) as arrays:
            return "videos" in arrays and len(arrays["videos"]) > 0
    except MemoryError:
        raise
    except Exception:  # a damaged zip raises many kinds
        return False


def write(folder: Path, problem: Problem, videos: np.ndarray) -> np.ndarray:
    """Writes `videos.npz`; the first process gets the videos of all processes."""
    count, index = jax.process_count(), jax.process_index()
    parts = [folder / f".videos-{i}-of-{count}.npy" for i in range(count)]
    with multihost.together():
        if count > 1:
            files.write(parts[index], lambda file: np.save(file, videos))
    with multihost.together():
        if multihost.first():
            if count > 1:
                videos = np.concatenate([np.load(part) for part in parts])
            stimuli = np.zeros((0, *videos.shape[1:]), np.float32)
            if problem.stimuli is not None:
                stimuli = problem.stimuli
            labels = problem.labels
            files.write(
                folder / "videos.npz",
                lambda file: np.savez(
                    file, videos=videos, stimuli=stimuli, labels=labels
                ),
            )
            for part in folder.glob(".videos-*-of-*.npy"):
                part.unlink()
    return videos
