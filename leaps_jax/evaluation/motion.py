"""How much a video moves, and how much of its change is motion.

A frozen video has the least change from frame to frame, so that no number here says
anything alone: look at change and warping error beside motion energy, and at all three
beside those of the stimuli.

Knows OpenCV, imported only to find the flow.
"""

import importlib.util

import numpy as np

_LEAST = 12  # pixels that OpenCV's flow needs in a frame


def neighbour_change(videos: np.ndarray) -> np.ndarray:
    """Mean |difference| of neighbouring frames, (n,), in units of pixels in [0, 1].

    VBench (Huang et al. 2024) takes it as its "temporal flickering".

    Args:
      videos: (n, t, h, w, 3); NaN for a single frame.
    """
    if videos.shape[1] < 2:
        return np.full(len(videos), np.nan)
    return np.array([np.abs(np.diff(v, axis=0)).mean() for v in videos])


def motion_energy(videos: np.ndarray) -> np.ndarray:
    """The variance of pixels over time, (n,): the mean over all pixels.

    What is left of a video when its mean frame is taken away; 0 for a frozen one.
    Flicker has it too, which is what the warping error is for.

    Args:
      videos: (n, t, h, w, 3) pixels in [0, 1].
    """
    return np.array([v.astype(np.float64).var(axis=0).mean() for v in videos])


def lacking() -> str | None:
    """Why the warping error cannot be measured, in one line; None if it can."""
    if importlib.util.find_spec("cv2") is None:
        return "no warping error: OpenCV is missing; pip install 'leaps_jax[evaluate]'"
    return None


def warping_error(videos: np.ndarray) -> np.ndarray:
    """The change that motion does not explain, (n,), in units of pixels in [0, 1].

    Each frame is compared with the next one, brought back along the optical flow
    between them (OpenCV's DIS, Kroeger et al. 2016, preset "medium"): the mean
    |difference| over pixels that the flow does not take out of the frame. So it is 0
    where everything moves and nothing changes, and near the neighbour change where the
    flow finds nothing.

    After Lai et al. (2018), "Learning Blind Video Temporal Consistency", who square
    differences, and leave out pixels that they hold to be occluded. Here those count:
    in a video that flickers they would be the worst.

    Args:
      videos: (n, t, h, w, 3) pixels in [0, 1]. NaN for a single frame, for frames
        below 12 pixels, and for videos that are not finite.

    Raises:
      ImportError: there is no OpenCV, see `lacking`.
    """
    import cv2

    n, t, h, w, _ = videos.shape
    if t < 2 or min(h, w) < _LEAST:
        return np.full(n, np.nan)
    preset = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
    finder = cv2.DISOpticalFlow_create(preset)  # type: ignore[attr-defined]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    errors = []
    for video in videos:
        if not np.isfinite(video).all():
            errors.append(np.nan)
            continue
        frames = np.ascontiguousarray(video, np.float32)
        shades = [
            (cv2.cvtColor(f, cv2.COLOR_RGB2GRAY).clip(0, 1) * 255).astype(np.uint8)
            for f in frames
        ]
        differences = []
        for i in range(t - 1):
            flow = finder.calc(shades[i], shades[i + 1], None)
            to_x, to_y = x + flow[..., 0], y + flow[..., 1]
            back = cv2.remap(frames[i + 1], to_x, to_y, cv2.INTER_LINEAR)
            inside = (to_x >= 0) & (to_x <= w - 1) & (to_y >= 0) & (to_y <= h - 1)
            if inside.any():
                differences.append(np.abs(back - frames[i])[inside].mean())
        errors.append(np.mean(differences) if differences else np.nan)
    return np.array(errors)
