"""The tables of an evaluation, for a terminal of 80 columns and for the page.

A report is `{"runs": {name: what protocol.evaluate found | {"model", "verifier"}}}`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

#: What each mark of a judge says.
MARKS = {
    "self": "the inverted model itself",
    "verifier": "took part as the verifier",
    "twin": "the inverted network with other weights",
    "verifier twin": "the verifier's network with other weights",
}

#: What each number is, in the words of the tables.
MEANINGS = {
    "top-1, top-5": "how often the class is the likeliest, or among the five likeliest."
    " Videos whose class a judge does not know are left out; a judge of five classes or"
    " fewer has no top-5.",
    "95 %": "bootstrap interval over videos (2,000 draws). It has no width where all"
    " videos agree, which is no certainty.",
    "stimuli, noise": "top-1 on the clips that the run was primed with, the ceiling,"
    " and on untouched noise of the same shape, the floor.",
    "right": "for classes that differ from a partner in their motion alone (sitting"
    " down and standing up; waving left and waving right hand): the right one of the"
    " two is the likelier.",
    "flips": "the same videos, played backwards or mirrored: now the partner is the"
    " likelier. A judge that sees a pose and no motion gets 50 %.",
    "both": "right before, and the partner after: 0 for a judge that sees no motion.",
    "shuffled, reversed, frozen": "points of top-1 lost when frames are put in random"
    " order, played backwards, or replaced by the middle one. Near 0: the judge needed"
    " no motion.",
    "IS": "Inception Score (Salimans et al. 2016), exp(mean KL(p(y|x) || p(y))): at"
    " most the number of classes, or of videos. Compare it between runs of equal size"
    " and judges only.",
    "diversity": "1 - mean cosine of penultimate features of every two videos of one"
    " class; 0 for copies.",
    "energy": "motion energy: variance of pixels over time (and how many times that of"
    " the stimuli; 1.00 is as much).",
    "change": "mean |difference| of neighbouring frames. Small is smooth, or frozen:"
    " read it with the energy.",
    "warping": "what of that change remains when the next frame is brought back along"
    " the optical flow. More than the stimuli's: flicker, not motion.",
    "likeness": "correlation of pixels with the most similar stimulus, on average (and"
    " the largest). Near 1: a copy of the clip.",
    "own": "how often the nearest stimulus is the video's own.",
}


_ORDERS = ("shuffled", "reversed", "frozen")
_JUDGED = (
    "stimuli, noise: top-1 on these, the ceiling and the floor. right: of two classes"
    " that differ in their motion alone, the right one is preferred; flips: the other"
    " one is, once the video is played backwards or mirrored (without seeing motion:"
    " 50%)."
)
_HELD_OUT = (
    "IS: Inception Score, mean over these judges, of all videos at once. diversity: of"
    " the videos of one class, 0 for copies."
    " shuffled, reversed, frozen: points of top-1 that this costs; near 0, no motion"
    " was needed. both: right, and flips."
)
_PIXELS = (
    "energy: variance over time. change: between neighbouring frames. warping: what is"
    " left of it after motion; above the stimuli's it flickers. likeness: correlation"
    " with the most similar stimulus (the largest); own: it is the video's own."
)


class Rows(NamedTuple):
    """A table: its title, the names of its columns, cells of text, what to read below.

    `quiet` are the numbers of rows that do not count, `bold` of those that sum up.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str
    quiet: frozenset[int] = frozenset()
    bold: frozenset[int] = frozenset()


def percent(estimate: Mapping[str, Any] | None) -> str:
    """The value of an estimate of a share, or a dash.

    >>> percent({"value": 0.875}), percent({"value": None})
    ('88%', '-')
    """
    value = (estimate or {}).get("value")
    return "-" if value is None else f"{value:.0%}"


def interval(estimate: Mapping[str, Any] | None) -> str:
    """Its interval, in percent.

    >>> interval({"value": 0.875, "low": 0.6, "high": 1.0})
    '60-100'
    """
    low, high = ((estimate or {}).get(key) for key in ("low", "high"))
    if low is None or high is None:
        return "-"
    return f"{100 * low:.0f}-{100 * high:.0f}"


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash for None."""
    return "-" if value is None else format(value, form)


def points(estimate: Mapping[str, Any] | None) -> str:
    """A drop in points, as what becomes of the share.

    >>> points({"value": 0.25}), points({"value": -0.1}), points({"value": 0.0})
    ('-25', '+10', '0')
    """
    value = (estimate or {}).get("value")
    if value is None:
        return "-"
    lost = round(100 * value)
    return f"{-lost:+d}" if lost else "0"


def _counts(summary: Mapping[str, Any] | None, key: str) -> str:
    counts = (summary or {}).values()
    total = sum(count["of"] for count in counts)
    return f"{sum(count[key] for count in counts)}/{total}" if total else "-"


def judged(name: str, run: Mapping[str, Any]) -> Rows:
    """What every judge sees in the videos of one run; those that count come first."""
    plural = "" if run["videos"] == 1 else "s"
    parts = [f"{name}: {run['videos']} video{plural}"]
    if run.get("model"):
        parts.append(f"of {run['model']}")
    if run.get("verifier"):
        parts.append(f"verifier {run['verifier']}")
    rows = []
    judges = sorted(run["judges"].items(), key=lambda item: not item[1]["counted"])
    for judge, told in judges:
        videos, stimuli = told["videos"], told.get("stimuli") or {}
        rows.append(
            (
                f"{judge} ({told['mark']})" if told["mark"] else judge,
                percent(videos["top1"]),
                interval(videos["top1"]),
                percent(videos["top5"]),
                percent(stimuli.get("top1")),
                percent(told["noise"]["top1"]),
                _counts(videos["motion"], "right"),
                _counts(videos["motion"], "flips"),
            )
        )
    counted = sum(told["counted"] for _, told in judges)
    held, turns = run["held_out"], run["held_out"]["videos"].get("motion", {})
    rows.append(
        (
            f"mean of {counted} held out" if counted else "no judge is held out",
            percent(held["videos"]["top1"]),
            interval(held["videos"]["top1"]),
            percent(held["videos"]["top5"]),
            percent(held.get("stimuli", {}).get("top1")),
            percent(held["noise"]["top1"]),
            percent(turns.get("all", {}).get("right")),
            percent(turns.get("all", {}).get("flips")),
        )
    )
    columns = ("judge", "top-1", "95 %", "top-5", "stimuli", "noise", "right", "flips")
    quiet = frozenset(range(counted, len(judges)))
    return Rows(
        ", ".join(parts), columns, rows, _JUDGED, quiet, frozenset({len(judges)})
    )


def held_out(runs: Mapping[str, Any]) -> Rows:
    """A row for each run: means over the judges that count."""
    rows = []
    for name, run in runs.items():
        videos = run["held_out"]["videos"]
        drop = videos.get("drop", {})
        rows.append(
            (
                name,
                percent(videos["top1"]),
                interval(videos["top1"]),
                number(videos["inception_score"]["value"]),
                number(videos["diversity"]["value"]),
                *(points(drop.get(order)) for order in _ORDERS),
                percent(videos.get("motion", {}).get("all", {}).get("both")),
            )
        )
    columns = ("run", "top-1", "95 %", "IS", "diversity", *_ORDERS, "both")
    return Rows("Held-out judges, by run", columns, rows, _HELD_OUT)


def pixels(runs: Mapping[str, Any]) -> Rows:
    """A row for each run: how its videos move beside the stimuli, and if they copy."""
    rows = []
    for name, run in runs.items():
        temporal, near = run["temporal"], run["nearest"] or {}
        cells = []
        for key in ("motion_energy", "neighbour_change", "warping_error"):
            found = temporal.get(key, {})
            value = (found.get("videos") or {}).get("value")
            times = (found.get("ratio") or {}).get("value")
            ratio = "" if times is None else f" ({times:.2f})"
            cells.append(number(value, ".2g") + ratio)
        mean = (near.get("correlation") or {}).get("value")
        largest = near.get("largest_correlation")
        cells.append("-" if mean is None else f"{mean:.2f} ({largest:.2f})")
        rows.append((name, *cells, percent(near.get("own"))))
    columns = ("run", "energy", "change", "warping", "likeness", "own")
    return Rows("Pixels (and how many times the stimuli's)", columns, rows, _PIXELS)


def of(report: Mapping[str, Any]) -> list[Rows]:
    """All tables of a report; of those that are alike, the last has the note."""
    runs = report["runs"]
    each = [judged(name, run) for name, run in runs.items()]
    alike = [rows._replace(note="") for rows in each[:-1]] + each[-1:]
    return [*alike, held_out(runs), pixels(runs)]


def notes(report: Mapping[str, Any]) -> list[str]:
    """Notes below the tables, a line each."""
    runs = report["runs"].values()
    marks = dict.fromkeys(
        told["mark"] for run in runs for told in run["judges"].values() if told["mark"]
    )
    lines = [f"({mark}): {MARKS.get(mark, mark)}; not in the mean" for mark in marks]
    for name, run in report["runs"].items():
        held = run["held_out"]
        if held["videos"]["judges"] and "saved" in held:
            top1 = [percent(held[source]["top1"]) for source in ("saved", "videos")]
            lines.append(
                f"{name}: held-out top-1 of the mp4 files {top1[0]}, of the arrays"
                f" {top1[1]}"
            )
    lacking = {run["temporal"]["lacking"] for run in runs} - {None}
    return lines + sorted(lacking)


def drawn(rows: Rows) -> Table:
    """One of them for a terminal, without its note."""
    found = Table(
        box=None,
        title=Text(rows.title),
        title_justify="left",
        title_style="bold",
        header_style="underline",
        padding=(0, 1, 0, 0),
    )
    for place, column in enumerate(rows.columns):
        first = place == 0
        found.add_column(
            column,
            justify="left" if first else "right",
            overflow="fold",
            min_width=12 if first else None,
        )
    for place, row in enumerate(rows.rows):
        style = "dim" if place in rows.quiet else "bold" if place in rows.bold else ""
        found.add_row(*map(Text, row), style=style)
    return found
