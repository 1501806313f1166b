"""The evaluation of one set of videos by several judges, as the paper asks for it.

>>> found = evaluate(videos, names, {"x3d": model}, stimuli=clips)  # doctest: +SKIP
>>> found["held_out"]["videos"]["top1"]                             # doctest: +SKIP
{'value': 0.87, 'low': 0.74, 'high': 0.96}
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from leaps_jax.errors import UserError
from leaps_jax.evaluation import judges as judging
from leaps_jax.evaluation import metrics, motion
from leaps_jax.evaluation.judges import CHANGES, ORDERS, Partners
from leaps_jax.model import Model

_NOISE_STD = 0.225  # of pixels: unit variance as most networks here normalise them
_NOISE = f"fresh: normal about grey (0.5), std {_NOISE_STD}, clipped to [0, 1]"


def evaluate(
    videos: np.ndarray,
    classes: Sequence[str],
    judges: Mapping[str, Model],
    *,
    stimuli: np.ndarray | None = None,
    noise: np.ndarray | None = None,
    saved: np.ndarray | None = None,
    partners: Partners | None = None,
    marks: Mapping[str, str] | None = None,
    splits: int = 1,
    batch: int | None = None,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Asks judges about videos, stimuli and noise, and measures the videos themselves.

    Args:
      videos: (n, t, h, w, 3) pixels in [0, 1].
      classes: n names of the classes that they should show. A judge is asked only
        about those that it knows by the same name.
      judges: by name.
      stimuli: (n, t, h, w, 3) pixels, that of each video: the ceiling.
      noise: (n, t, h, w, 3) pixels, the floor; by default `fresh_noise`.
      saved: (n, t, h, w, 3) pixels, the videos as read back from compressed files:
        what an optimiser hides in the last bits is lost there.
      partners: {"reversed" or "mirrored": {class: what it becomes by that}}.
      marks: {judge: why it does not count}, of those that took part in making the
        videos: "self", "verifier", "twin". They are asked, and left out of means.
      splits: of the Inception Score.
      batch: videos at a time, see `judges.ask`.
      seed: of noise, splits and bootstraps; frames are always shuffled alike.
      progress: called after each judge and source.

    Returns:
      What JSON can hold, None for what cannot be measured. `judges` has by judge its
      `mark`, whether it is `counted`, and what it makes of each source; `held_out` the
      means over those that count; `temporal` and `nearest` measure pixels. An estimate
      is a dict of `value`, `low` and `high`, a bootstrap interval of 95 % over videos.

    Raises:
      UserError: the arguments do not fit together.
    """
    marks, partners = marks or {}, partners or {}
    given = {"videos": videos, "stimuli": stimuli, "saved": saved, "noise": noise}
    sources = {name: np.asarray(v) for name, v in given.items() if v is not None}
    _check(sources, classes, judges, marks)
    videos, stimuli = sources["videos"], sources.get("stimuli")
    sources.setdefault("noise", fresh_noise(videos.shape, seed))
    if batch is None and len(videos):
        batch = min(judging.batch_size(), 1 << (len(videos) - 1).bit_length())

    settings = _Settings(classes, partners, splits, batch, seed)
    table: dict[str, dict[str, Any]] = {}
    verdicts: dict[str, list[_Verdict]] = {source: [] for source in sources}
    for name, model in judges.items():
        mark = marks.get(name, "")
        table[name] = {"model": model.spec.name, "mark": mark, "counted": not mark}
        for source, clips in sources.items():
            found = _verdict(model, clips, settings, source in ("videos", "stimuli"))
            table[name][source] = found.report
            if not mark:
                verdicts[source].append(found)
            progress()
    report = {
        "videos": len(videos),
        "shape": list(videos.shape[1:]),
        "classes": list(classes),
        "noise": _NOISE if noise is None else "given",
        "judges": table,
        "held_out": {
            source: _mean(found, seed, len(videos))
            for source, found in verdicts.items()
        },
        "temporal": _temporal(videos, stimuli, seed),
        "nearest": None if stimuli is None else _nearest(videos, stimuli, seed),
    }
    return metrics.plain(report)


def fresh_noise(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The floor: normal noise about grey, as a run may start from, in pixels.

    It is not a run's own, which only its model and engine could draw again.

    Args:
      shape: (n, t, h, w, 3).
      seed: of the noise.
    """
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return np.clip(0.5 + _NOISE_STD * noise, 0, 1)


def _check(sources, classes, judges, marks) -> None:
    videos = sources["videos"]
    if videos.ndim != 5 or videos.shape[-1] != 3:
        raise UserError(f"videos of shape {videos.shape}: must be (n, t, h, w, 3)")
    if len(classes) != len(videos):
        raise UserError(
            f"classes: {len(classes)} for {len(videos)} videos; name one for each"
        )
    for name in classes:
        if not isinstance(name, str):
            raise UserError(f"classes={name!r}: judges know names; give one, no number")
    for name, clips in sources.items():
        if not np.issubdtype(clips.dtype, np.floating):
            raise UserError(f"{name} of type {clips.dtype}: must be float in [0, 1]")
        if clips.shape != videos.shape:
            raise UserError(
                f"{name} of shape {clips.shape}: must be that of the videos,"
                f" {videos.shape}"
            )
    for name in marks:
        if name not in judges:
            raise UserError(f"marks={name!r}: no judge; name one of {list(judges)}")


class _Verdict(NamedTuple):
    """The scores of one judge on one source.

    Attributes:
      report: what is told of it.
      right: {"top1", "top5", and the drop after each order: (n,)}, NaN for classes
        that the judge does not know.
      motion: rows of `judges.motion_test`.
    """

    report: dict[str, Any]
    right: dict[str, np.ndarray]
    motion: list[dict[str, Any]]


class _Settings(NamedTuple):
    """Facts of the videos themselves, the same for all judges."""

    classes: Sequence[str]
    partners: Partners
    splits: int
    batch: int | None
    seed: int


def _verdict(
    model: Model, videos: np.ndarray, settings: _Settings, order: bool
) -> _Verdict:
    """Asks one judge about one source, with its frames in another `order` too."""
    answers = judging.ask(model, videos, settings.batch)
    before, names = answers.probabilities, settings.classes
    right = {f"top{k}": _right(model, before, names, k) for k in (1, 5)}
    spread: dict[str, float] = {}
    if answers.features is not None:
        spread = metrics.diversity(answers.features, names)
    known = model.spec.classes
    asked = [name if name in known else None for name in names]
    report = judging.verdict(model, before, asked) | {
        "known": int(np.isfinite(right["top1"]).sum()),
        "top1": metrics.estimate(right["top1"], settings.seed),
        "top5": metrics.estimate(right["top5"], settings.seed),
        "inception_score": metrics.inception_score(
            before, settings.splits, settings.seed
        ),
        "diversity": metrics.estimate(list(spread.values()), settings.seed)
        | {"classes": len(spread), "features": answers.source},
    }
    if not order:  # noise has none to lose
        return _Verdict(report, right, [])

    orders, after = {}, {}
    for name, changed in ORDERS.items():
        after[name] = judging.seen(model, changed(videos), settings.batch)
        still = _right(model, after[name], names, 1)
        right[name] = right["top1"] - still
        orders[name] = {
            "top1": metrics.estimate(still, settings.seed),
            "drop": metrics.estimate(right[name], settings.seed),
        }
    rows = []
    for change, changed in CHANGES.items():
        if judging.with_partner(known, names, settings.partners.get(change, {})):
            if change not in after:
                after[change] = judging.seen(model, changed(videos), settings.batch)
            rows += judging.motion_rows(
                known, names, settings.partners, change, before, after[change]
            )
    report |= {
        "order": orders,
        "motion": judging.motion_counts(rows),
        "motion_rows": rows,
    }
    return _Verdict(report, right, rows)


def _right(
    model: Model, probabilities: np.ndarray, classes: Sequence[str], k: int
) -> np.ndarray:
    """1 or 0 by video, NaN where that says nothing: all of five are in the top 5."""
    known = model.spec.classes
    labels = np.array([known.index(c) if c in known else -1 for c in classes], int)
    right = metrics.in_top(probabilities, labels, k).astype(float)
    return np.where((labels < 0) | (k >= len(known) > 1), np.nan, right)


def _mean(verdicts: Sequence[_Verdict], seed: int, n: int) -> dict[str, Any]:
    """Over judges: of shares video by video, so that the videos can be resampled."""
    found: dict[str, Any] = {"judges": len(verdicts)}

    def over_judges(key: str) -> metrics.Estimate:
        known = [v.right[key] for v in verdicts if np.isfinite(v.right[key]).any()]
        rows = np.array(known).reshape(len(known), n)
        weight = np.isfinite(rows).sum(0)
        return metrics.ratio(np.nan_to_num(rows).sum(0), weight, seed)

    found |= {key: over_judges(key) for key in ("top1", "top5")}
    for key in ("inception_score", "diversity"):
        values = [v.report[key]["value"] for v in verdicts]
        values = [v for v in values if v is not None]
        mean = float(np.mean(values)) if values else None
        found[key] = {"value": mean, "low": None, "high": None}
    if any("order" in v.report for v in verdicts):
        found["drop"] = {name: over_judges(name) for name in ORDERS}
        found["motion"] = {
            change: _motion_shares(verdicts, (change,), seed, n) for change in CHANGES
        }
        found["motion"]["all"] = _motion_shares(verdicts, tuple(CHANGES), seed, n)
    return found


def _motion_shares(
    verdicts: Sequence[_Verdict], changes: Sequence[str], seed: int, n: int
) -> dict[str, Any]:
    """Shares of the rows of `motion_test` that are right, that flip, and that do both.

    A judge that sees no motion does one or the other, and never both.
    """
    shares = ("right", "flips", "both")
    sums = {key: np.zeros(n) for key in ("of", *shares)}
    for row in (row for v in verdicts for row in v.motion if row["change"] in changes):
        sums["of"][row["video"]] += 1
        right, flips = row["before"] > 0.5, row["after"] > 0.5
        sums["right"][row["video"]] += right
        sums["flips"][row["video"]] += flips
        sums["both"][row["video"]] += right and flips
    counts = {"of": int(sums["of"].sum())}
    return counts | {key: metrics.ratio(sums[key], sums["of"], seed) for key in shares}


def _temporal(
    videos: np.ndarray, stimuli: np.ndarray | None, seed: int
) -> dict[str, Any]:
    """Each measure of the videos, of the stimuli, and the ratio of their means."""
    measures = {
        "motion_energy": motion.motion_energy,
        "neighbour_change": motion.neighbour_change,
    }
    if (reason := motion.lacking()) is None:
        measures["warping_error"] = motion.warping_error
    found: dict[str, Any] = {"lacking": reason}
    for name, measure in measures.items():
        values = measure(videos)
        found[name] = {"videos": metrics.estimate(values, seed), "each_videos": values}
        if stimuli is not None:
            baseline = measure(stimuli)
            found[name]["stimuli"] = metrics.estimate(baseline, seed)
            found[name]["each_stimuli"] = baseline
            found[name]["ratio"] = metrics.ratio(values, baseline, seed)
    return found


def _nearest(videos: np.ndarray, stimuli: np.ndarray, seed: int) -> dict[str, Any]:
    rows = metrics.nearest(videos, stimuli)
    correlations = [row["correlation"] for row in rows]
    return {
        "distance": metrics.estimate([row["distance"] for row in rows], seed),
        "correlation": metrics.estimate(correlations, seed),
        "largest_correlation": max(correlations, default=None),
        "own": metrics.estimate([row["own"] for row in rows], seed),
        "each": rows,
    }
