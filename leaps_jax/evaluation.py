"""Is it right? Accuracy on labelled clips, and whether a video shows the motion.

>>> table = accuracy(np.eye(2), np.array([0, 1]), ("left", "right"))
>>> table["top1"], table["classes"]["left"]
(1.0, 1.0)
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from leaps_jax import taps
from leaps_jax.actions import motions
from leaps_jax.taps import Model

#: What is done to a video, and which class it shows after it.
CHANGES = {
    "reversed": (motions.REVERSED, lambda videos: videos[:, ::-1]),
    "mirrored": (motions.MIRRORED, lambda videos: videos[:, :, :, ::-1]),
}


def accuracy(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """How often a classifier is right.

    Args:
      probabilities: (n, classes).
      labels: (n,).
      classes: names.

    Returns:
      `top1`, and by class in `classes`. In `reversed_pairs`, for classes that are each
      other's reversal: `top1` over the clips of both, and `choice`, how often the
      right one of the two is the likelier. All are in [0, 1].
    """
    right = probabilities.argmax(1) == labels
    pairs = {}
    for a, b in motions.REVERSED.items():
        if a in classes and b in classes and f"{b} / {a}" not in pairs:
            i, j = classes.index(a), classes.index(b)
            own = (labels == i) | (labels == j)
            if not own.any():
                continue
            other = np.where(labels == i, j, i)[own]
            rows = probabilities[own]
            of = np.arange(len(rows))
            choice = rows[of, labels[own]] > rows[of, other]
            pairs[f"{a} / {b}"] = {
                "top1": float(right[own].mean()),
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


def seen(model: Model, videos: np.ndarray, batch: int = 8) -> np.ndarray:
    """Class probabilities (n, classes) that a model gives videos (n, t, h, w, 3)."""
    parts = [videos[i : i + batch] for i in range(0, len(videos), batch)]
    return np.concatenate(
        [np.asarray(jax.nn.softmax(taps.predict(model, part))) for part in parts]
    )


def truth(
    model: Model, videos: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Does a video show the motion that defines its class?

    A class and its partner differ in their motion alone: one is the other reversed in
    time, or seen in a mirror. The judge must prefer the right one of the two, and must
    prefer the other one when the video is reversed, or mirrored.

    Args:
      model: the judge.
      videos: (n, t, h, w, 3) pixels.
      names: n class names; those without a partner are left out, and those that the
        judge does not know.

    Returns:
      A row for every video and change: `video`, `class`, `partner`, `change`, and the
      share of the probability of the two that goes to the class (`before`) and, after
      the change, to the partner (`after`). Above a half is right.
    """
    known, rows = model.spec.classes, []
    for change, (partners, changed) in CHANGES.items():
        paired = [
            i
            for i, name in enumerate(names)
            if name in known and partners.get(name) in known
        ]
        if not paired:
            continue
        before = seen(model, videos[paired])
        after = seen(model, changed(videos[paired]))
        for row, i in enumerate(paired):
            name, partner = names[i], partners[names[i]]
            own, other = known.index(name), known.index(partner)
            rows.append(
                {
                    "video": i,
                    "class": name,
                    "partner": partner,
                    "change": change,
                    "before": _share(before[row, own], before[row, other]),
                    "after": _share(after[row, other], after[row, own]),
                }
            )
    return rows


def _share(one: float, other: float) -> float:
    return float(one / max(one + other, 1e-12))


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Counts the rows of `truth` by change: `of`, `right` before it, `flips` after."""
    return {
        change: {
            "of": len(own),
            "right": sum(row["before"] > 0.5 for row in own),
            "flips": sum(row["after"] > 0.5 for row in own),
        }
        for change in CHANGES
        if (own := [row for row in rows if row["change"] == change])
    }


def judge(model: Model, videos: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """What a model sees in videos.

    Args:
      model: the judge; classes are matched by name.
      videos: (n, t, h, w, 3) pixels in [0, 1].
      names: n classes that they should show.

    Returns:
      `model`, how many are `correct` `of` how many, and for each video the class
      `seen`, with its `confidence`.
    """
    probabilities = seen(model, videos)
    found = [model.spec.classes[i] for i in probabilities.argmax(1)]
    return {
        "model": model.spec.name,
        "correct": sum(a == b for a, b in zip(found, names, strict=True)),
        "of": len(names),
        "seen": found,
        "confidence": [float(f"{p:.6g}") for p in probabilities.max(1)],
    }


def joined(verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The verdict of one judge on several groups of videos, from that on each."""
    return verdicts[0] | {
        key: sum((verdict[key] for verdict in verdicts), start)
        for key, start in (("correct", 0), ("of", 0), ("seen", []), ("confidence", []))
    }
