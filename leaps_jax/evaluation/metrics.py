"""Numbers of answers and features: pure functions of arrays.

>>> estimate([1, 1, 0, 1])["value"]
0.75
>>> inception_score(np.eye(4))["value"]
4.0
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
LEVEL = 0.95

#: `value`, and `low` and `high` of its interval; all None where nothing was measured.
Estimate = dict[str, float | None]


def estimate(values: ArrayLike, seed: int = 0) -> Estimate:
    """The mean of values, with a bootstrap interval of 95 %.

    The percentile bootstrap of Efron (1979), with videos as the units that are drawn.
    If all values agree the interval has no width, which is no certainty: of 23 videos
    that are all right, another sample may still hold some that are wrong.

    Args:
      values: (n,), one a video; those that are NaN are left out.
      seed: of the resampling.
    """
    values = np.asarray(values, np.float64)
    kept = values[np.isfinite(values)]
    return ratio(kept, np.ones_like(kept), seed)


def ratio(above: ArrayLike, below: ArrayLike, seed: int = 0) -> Estimate:
    """The sum of one quantity over that of another, of the same videos.

    Args:
      above: (n,).
      below: (n,), not negative. Videos with a NaN in either are left out.
      seed: of the resampling, in which both keep to their video.
    """
    a, b = (np.asarray(values, np.float64) for values in (above, below))
    kept = np.isfinite(a) & np.isfinite(b)
    a, b = a[kept], b[kept]
    if not b.sum() > 0:
        return {"value": None, "low": None, "high": None}
    value = float(a.sum() / b.sum())
    if len(a) < 2:
        return {"value": value, "low": None, "high": None}
    drawn = np.random.default_rng(seed).integers(0, len(a), (RESAMPLES, len(a)))
    sums = b[drawn].sum(1)
    means = a[drawn].sum(1)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": value, "low": float(low), "high": float(high)}


def in_top(probabilities: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether the class is among the `k` likeliest, (n,) bool.

    Args:
      probabilities: (n, classes).
      labels: (n,).
      k: of equally likely classes, the first in order count; a NaN is never right.
    """
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    found = (likeliest == np.asarray(labels)[:, None]).any(1)
    return found & np.isfinite(probabilities).all(1)


def accuracy(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    reversals: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """How often a classifier is right.

    Args:
      probabilities: (n, classes).
      labels: (n,).
      classes: names.
      reversals: of a class, the one that its clips show when played backwards.

    Returns:
      `top1`, and by class in `classes`. In `reversed_pairs`, for classes that are each
      other's reversal: `top1` over the clips of both, and `choice`, how often the
      right one of the two is the likelier. All are in [0, 1].
    """
    right = in_top(probabilities, labels, 1)
    pairs: dict[str, dict[str, float]] = {}
    for a, b in (reversals or {}).items():
        if a in classes and b in classes and f"{b} / {a}" not in pairs:
            i, j = classes.index(a), classes.index(b)
            of_pair = (labels == i) | (labels == j)
            if not of_pair.any():
                continue
            other = np.where(labels == i, j, i)[of_pair]
            chosen = probabilities[of_pair]
            rows = np.arange(len(chosen))
            choice = chosen[rows, labels[of_pair]] > chosen[rows, other]
            pairs[f"{a} / {b}"] = {
                "top1": float(right[of_pair].mean()),
                "choice": float(choice.mean()),
            }
    return {
        "clips": len(labels),
        "top1": float(right.mean()),
        "classes": {
            name: float(right[labels == i].mean())
            for i, name in enumerate(classes)
            if (labels == i).any()
        },
        "reversed_pairs": pairs,
    }


def inception_score(
    probabilities: np.ndarray, splits: int = 1, seed: int = 0
) -> dict[str, Any]:
    """exp(mean KL(p(y|x) || p(y))): answers that are sure, and differ.

    Salimans et al. (2016), "Improved Techniques for Training GANs", with any judge in
    the place of the Inception network. It is at least 1 and at most the number of
    classes, or of videos in a split if those are fewer: compare scores of one judge
    and one number of videos only.

    Args:
      probabilities: (n, classes).
      splits: the videos are shuffled and split, and the score is the mean over splits.
      seed: of the shuffle.

    Returns:
      `value`, `std` over splits (None for one), `videos`, `splits` and `classes`.
      `value` is None where there are fewer videos than splits.
    """
    kept = probabilities[np.isfinite(probabilities).all(1)].astype(np.float64)
    facts = {"videos": len(kept), "splits": splits, "classes": probabilities.shape[1]}
    if not 0 < splits <= len(kept):
        return {"value": None, "std": None, **facts}
    order = np.random.default_rng(seed).permutation(len(kept))
    scores = []
    for part in np.array_split(kept[order], splits):
        ratios = np.divide(part, part.mean(0), out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratios)).sum(1).mean()))
    std = float(np.std(scores)) if splits > 1 else None
    return {"value": float(np.mean(scores)), "std": std, **facts}


def diversity(features: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """How much the videos of one class differ: 1 - mean cosine of every two.

    0 for copies, 1 for features at right angles.

    Args:
      features: (n, c) of a judge.
      groups: n classes.

    Returns:
      By class, for those with two or more videos.
    """
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    units = features / np.maximum(lengths, 1e-12)
    found = {}
    for name in dict.fromkeys(groups):
        own = units[[group == name for group in groups]]
        n = len(own)
        if n > 1:
            cosine = (np.square(own.sum(0)).sum() - np.square(own).sum()) / (n * n - n)
            found[name] = float(np.maximum(1 - cosine, 0))  # NaN stays
    return found


def nearest(videos: np.ndarray, stimuli: np.ndarray) -> list[dict[str, Any]]:
    """Is a video a copy of a clip? The stimulus nearest to each, pixel by pixel.

    Args:
      videos: (n, t, h, w, 3) pixels.
      stimuli: (n, t, h, w, 3), that of each video.

    Returns:
      For every video: `stimulus`, the number of the nearest one; `distance` to it, the
      RMS difference of pixels over the standard deviation of that stimulus (0 for a
      copy, 1 for a grey frame of its mean); `correlation`, Pearson's, the largest with
      any stimulus; and whether the nearest is its `own`, or equal to it
      (None for a video that is not finite).
    """
    if not len(videos):
        return []
    clips, shown = (a.reshape(len(a), -1).astype(np.float32) for a in (stimuli, videos))
    count, rows = clips.shape[-1], []
    means, spreads = clips.mean(1), np.maximum(clips.std(1), 1e-12)
    clips = clips - means[:, None]
    for number, video in enumerate(shown):
        mean, spread = video.mean(), max(float(video.std()), 1e-12)
        correlations = clips @ (video - mean) / (count * spread * spreads)
        # |v - s|² from the products that are there; the nearest again, without rounding
        squares = spread**2 + spreads**2 - 2 * correlations * spread * spreads
        best = int(((squares + (mean - means) ** 2) / spreads**2).argmin())
        away = video - (clips[best] + means[best])
        distance = float(np.sqrt(np.square(away).mean()) / spreads[best])
        own = bool((stimuli[best] == stimuli[number]).all())
        rows.append(
            {
                "stimulus": best,
                "distance": distance,
                "correlation": float(correlations.max()),
                "own": own if np.isfinite(distance) else None,
            }
        )
    return rows


def plain(value: Any) -> Any:
    """A value as JSON knows it: arrays as lists, and None for what is not finite.

    >>> plain({"a": np.float32("nan"), "b": (np.int64(1), True)})
    {'a': None, 'b': [1, True]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
