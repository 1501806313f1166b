"""What models see in videos, and in the same videos with their frames in another order.

>>> ask(model, videos).probabilities.shape                      # doctest: +SKIP
(8, 400)
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax import taps
from leaps_jax import video as video_lib
from leaps_jax.model import Model

Change = Callable[[np.ndarray], np.ndarray]

#: What may turn a class into its partner.
CHANGES: dict[str, Change] = {
    "reversed": lambda videos: videos[:, ::-1],
    "mirrored": lambda videos: videos[:, :, :, ::-1],
}

#: By change, the class that a class becomes: {"reversed": {"throwing": "catching"}}.
Partners = Mapping[str, Mapping[str, str]]


def shuffled(videos: np.ndarray, seed: int = 0) -> np.ndarray:
    """Videos (n, t, ...) with their frames in random order, another for each video.

    Never in their own order, unless there is but one frame.
    """
    rng, t = np.random.default_rng(seed), videos.shape[1]
    found = np.empty_like(videos)
    for i, video in enumerate(videos):
        order = rng.permutation(t)
        while t > 1 and (order == np.arange(t)).all():
            order = rng.permutation(t)
        found[i] = video[order]
    return found


def frozen(videos: np.ndarray) -> np.ndarray:
    """Videos (n, t, ...) that stand still: the middle frame in the place of all."""
    t = videos.shape[1]
    return np.repeat(videos[:, t // 2 : t // 2 + 1], t, axis=1)


#: What takes the order of frames away, or changes it.
ORDERS: dict[str, Change] = {
    "shuffled": shuffled,
    "reversed": CHANGES["reversed"],
    "frozen": frozen,
}


_TOP = 5  # classes that a verdict tells


class Answers(NamedTuple):
    """The logits and features that a model computes for videos.

    Attributes:
      probabilities: (n, classes).
      features: (n, c), or None where the model shows none.
      source: which features they are, or None.
    """

    probabilities: np.ndarray
    features: np.ndarray | None = None
    source: str | None = None


def batch_size() -> int:
    """Videos that are asked about at a time: few on a CPU, which gains nothing."""
    return 8 if jax.default_backend() == "cpu" else 32


def ask(model: Model, videos: np.ndarray, batch: int | None = None) -> Answers:
    """Class probabilities and penultimate features of videos.

    Features are what enters the last `nn.Dense` that gives as many numbers as there
    are classes, averaged over positions; of a model without one, the mean of its last
    tap. `source` says which. The last batch is filled up, so that a judge is compiled
    once.

    Args:
      model: the judge.
      videos: (n, t, h, w, 3) pixels in [0, 1], of any length and size.
      batch: videos at a time; `batch_size()` by default, or fewer for few videos.
    """
    if not len(videos):
        return Answers(np.zeros((0, model.spec.num_classes), np.float32))
    if batch is None:
        batch = min(batch_size(), 1 << (len(videos) - 1).bit_length())
    parts, features = [], []
    source: str | None = None
    for start in range(0, len(videos), batch):
        part = np.asarray(videos[start : start + batch], np.float32)
        n = len(part)
        part = np.concatenate([part, np.repeat(part[-1:], batch - n, axis=0)])
        answers = _answers(
            model.module, model.spec, model.tap_filter, model.variables, part
        )
        probabilities, entering = jax.device_get(answers)
        parts.append(probabilities[:n])
        if entering:
            ((source, value),) = entering.items()
            features.append(value[:n])
    found = np.concatenate(features) if features else None
    return Answers(np.concatenate(parts), found, source)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _answers(module, spec, tap_filter, variables, videos):
    entering = {}  # one at most; its key is part of what jit keeps

    def watch(call, args, kwargs, context):
        dense = context.module
        if isinstance(dense, nn.Dense) and dense.features == spec.num_classes:
            entering.clear()
            entering[f"input of {'/'.join(dense.path)}"] = args[0]
        return call(*args, **kwargs)

    shown = video_lib.fit(videos, spec.frames, spec.size)
    normalized = video_lib.normalize(shown, spec)
    with nn.intercept_methods(watch):
        logits = module.apply(variables, normalized)
    if not entering:
        _, found = taps.apply(module, variables, normalized, tap_filter)
        for name, tap in list(found.items())[-1:]:
            entering[f"mean of {name}"] = tap.value
    means = {
        name: taps.mean_over_positions(value.astype(jnp.float32))
        for name, value in entering.items()
    }
    return jax.nn.softmax(logits.astype(jnp.float32)), means


def seen(model: Model, videos: np.ndarray, batch: int | None = None) -> np.ndarray:
    """Class probabilities (n, classes) that a model gives videos (n, t, h, w, 3)."""
    return ask(model, videos, batch).probabilities


def judge(
    model: Model, videos: np.ndarray, names: Sequence[str | None]
) -> dict[str, Any]:
    """The class that a model sees in each video, and how sure it is.

    Args:
      model: the judge; classes are matched by name.
      videos: (n, t, h, w, 3) pixels in [0, 1].
      names: n classes that they should show, None for a video without a class.

    Returns:
      `model`; how many are `correct` `of` how many that should show a class (None
      where none should); and for each video the class `seen`, with its `confidence`, in
      `top` up to five [class, probability], the likeliest first, and in `asked` the
      probability of the class that it should show, None where the model has no such
      class.
    """
    return verdict(model, seen(model, videos), names)


def verdict(
    model: Model, probabilities: np.ndarray, names: Sequence[str | None]
) -> dict[str, Any]:
    """`judge`, from probabilities (n, classes) that the model gave already."""
    known = model.spec.classes
    found = [known[i] for i in probabilities.argmax(1)]
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :_TOP]
    asked = sum(name is not None for name in names)
    correct = sum(a == b for a, b in zip(found, names, strict=True))
    return {
        "model": model.spec.name,
        "correct": correct if asked else None,  # 0 would tell of a failure
        "of": asked,
        "seen": found,
        "confidence": [_rounded(p) for p in probabilities.max(1)],
        "top": [
            [[known[i], _rounded(row[i])] for i in numbers]
            for row, numbers in zip(probabilities, likeliest, strict=True)
        ],
        "asked": [
            _rounded(row[known.index(name)]) if name in known else None
            for row, name in zip(probabilities, names, strict=True)
        ],
    }


def _rounded(probability: float) -> float:
    return float(f"{probability:.6g}")


def joined(verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The verdict of one judge on several groups of videos, from that on each."""
    lists = ("seen", "confidence", "top", "asked")
    counts = [v["correct"] for v in verdicts if v["correct"] is not None]
    return verdicts[0] | {
        "correct": sum(counts) if counts else None,
        "of": sum(verdict["of"] for verdict in verdicts),
        **{key: [one for v in verdicts for one in v[key]] for key in lists},
    }


def motion_test(
    model: Model,
    videos: np.ndarray,
    names: Sequence[str],
    partners: Partners,
    batch: int | None = None,
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
      partners: of classes, by change.
      batch: videos at a time, see `ask`.

    Returns:
      A row for every video and change: `video`, `class`, `partner`, `change`, and the
      share of the probability of the two that goes to the class (`before`) and, after
      the change, to the partner (`after`). Above a half is right.
    """
    known, rows = model.spec.classes, []
    for change, apply in CHANGES.items():
        paired = with_partner(known, names, partners.get(change, {}))
        if not paired:
            continue
        before = seen(model, videos[paired], batch)
        after = seen(model, apply(videos[paired]), batch)
        chosen = [names[i] for i in paired]
        for row in motion_rows(known, chosen, partners, change, before, after):
            rows.append(row | {"video": paired[row["video"]]})
    return rows


def with_partner(
    known: Sequence[str], names: Sequence[str], pairs: Mapping[str, str]
) -> list[int]:
    """The numbers of those names that are known, with a partner that is."""
    return [
        i for i, name in enumerate(names) if name in known and pairs.get(name) in known
    ]


def motion_rows(
    known: Sequence[str],
    names: Sequence[str],
    partners: Partners,
    change: str,
    before: np.ndarray,
    after: np.ndarray,
) -> list[dict[str, Any]]:
    """The rows of `motion_test` for one change.

    Args:
      known: classes of the judge.
      names: n class names.
      partners: as for `motion_test`.
      change: which one.
      before: (n, classes) what the judge said.
      after: (n, classes) what it said after the change.
    """
    pairs, rows = partners.get(change, {}), []
    for i in with_partner(known, names, pairs):
        name, partner = names[i], pairs[names[i]]
        this, other = known.index(name), known.index(partner)
        rows.append(
            {
                "video": i,
                "class": name,
                "partner": partner,
                "change": change,
                "before": _share(before[i, this], before[i, other]),
                "after": _share(after[i, other], after[i, this]),
            }
        )
    return rows


def _share(one: float, other: float) -> float:
    return float(one / max(one + other, 1e-12))


def motion_counts(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Counts rows of `motion_test` by change: `of`, `right` before, `flips` after."""
    return {
        change: {
            "of": len(changed),
            "right": sum(row["before"] > 0.5 for row in changed),
            "flips": sum(row["after"] > 0.5 for row in changed),
        }
        for change in CHANGES
        if (changed := [row for row in rows if row["change"] == change])
    }
