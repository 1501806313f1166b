"""The page of an evaluation: one file, with its plots and pictures inside.

Knows matplotlib, imported only to draw.
"""

import base64
import html
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from leaps_jax.evaluation import tables
from leaps_jax.evaluation.tables import Rows, percent

# A colour that no plot has otherwise; the page puts that of its own text in its place.
_INK = "#010203"
_BLUE, _ORANGE, _GREY = "#3b82c4", "#d9822b", "#8c8c8c"
_SHOWN, _FRAMES, _PIXELS = 8, 4, 96  # videos of a run, frames of each, pixels of these


def page(
    report: Mapping[str, Any], finished: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """A page in HTML that needs no other file.

    Args:
      report: from `runs.comparison.compare`.
      finished: by run, its `videos` and `stimuli` (n, t, h, w, 3), to show some of.
    """
    parts = [_answer(report), *map(_table, tables.of(report)[-2:]), _matrix(report)]
    for name, run in report["runs"].items():
        parts.append(f"<h2>{_text(name)}</h2>")
        parts.append(_table(tables.judged(name, run)))
        parts += _notes(name, run)
        parts.append(_figures(run))
        if finished and name in finished:
            parts.append(_pictures(run, finished[name]))
    parts.append("<h2>What the numbers mean</h2><dl>")
    parts += [
        f"<dt>{_text(word)}</dt><dd>{_text(meaning)}</dd>"
        for word, meaning in tables.MEANINGS.items()
    ]
    return _PAGE.format(body="\n".join([*parts, "</dl>"]))


def _text(value: Any) -> str:
    return html.escape(str(value))


def _answer(report: Mapping[str, Any]) -> str:
    """The result of each run in a sentence."""
    sentences = []
    for name, run in report["runs"].items():
        held = run["held_out"]
        videos, turns = held["videos"], held["videos"].get("motion", {}).get("all", {})
        if not videos["judges"]:
            sentences.append(
                f"<b>{_text(name)}</b>: every judge took part in making these videos;"
                " name others to learn whether anyone else recognises them."
            )
            continue
        said = (
            f"<b>{_text(name)}</b>: {videos['judges']} judges that took no part name"
            f" <b>{percent(videos['top1'])}</b> of the videos rightly"
            f" ({percent(held['noise']['top1'])} of noise"
        )
        if "stimuli" in held:
            said += f", {percent(held['stimuli']['top1'])} of the stimuli"
        said += ")"
        if turns.get("of"):
            said += (
                f"; where a class differs from another in its motion alone, they prefer"
                f" the right one in {percent(turns['right'])}, the other one in"
                f" {percent(turns['flips'])} once it is turned round, and do both"
                f" in <b>{percent(turns['both'])}</b>"
            )
        times = run["temporal"]["motion_energy"].get("ratio", {}).get("value")
        if times is not None:
            said += f". They have {times:.2f} times the motion energy of the stimuli"
        sentences.append(said + ".")
    return "".join(f"<p>{sentence}</p>" for sentence in sentences)


def _table(rows: Rows) -> str:
    said = {
        word: meaning
        for words, meaning in tables.MEANINGS.items()
        for word in words.split(", ")
    }
    head = "".join(
        f'<th title="{_text(said.get(column, ""))}">{_text(column)}</th>'
        for column in rows.columns
    )
    lines = []
    for place, row in enumerate(rows.rows):
        kind = "quiet" if place in rows.quiet else "bold" if place in rows.bold else ""
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in row)
        lines.append(f'<tr class="{kind}">{cells}</tr>')
    return (
        f"<figure><figcaption>{_text(rows.title)}</figcaption>"
        f"<table><tr>{head}</tr>{''.join(lines)}</table></figure>"
    )


def _notes(name: str, run: Mapping[str, Any]) -> list[str]:
    own = tables.notes({"runs": {name: run}})
    return [f'<p class="quiet">{_text(line)}</p>' for line in own]


def _matrix(report: Mapping[str, Any]) -> str:
    """Top-1 of every judge on every run."""
    runs = report["runs"]
    judges = dict.fromkeys(judge for run in runs.values() for judge in run["judges"])
    head = "".join(f"<th>{_text(judge)}</th>" for judge in judges)
    lines = []
    for name, run in runs.items():
        cells = []
        for judge in judges:
            told = run["judges"][judge]
            value = told["videos"]["top1"]["value"]
            mark = f"<br><small>{_text(told['mark'])}</small>" if told["mark"] else ""
            cells.append(
                f'<td class="cell" style="--share:{100 * (value or 0):.0f}%">'
                f"{percent(told['videos']['top1'])}{mark}</td>"
            )
        lines.append(f"<tr><td>{_text(name)}</td>{''.join(cells)}</tr>")
    return (
        "<figure><figcaption>Top-1 of every judge on every run</figcaption>"
        f"<table><tr><th>run</th>{head}</tr>{''.join(lines)}</table></figure>"
    )


def _figures(run: Mapping[str, Any]) -> str:
    drawn = [
        ("Top-1 of each judge, with its interval", _draw_judges),
        ("Top-1 when the order of frames is changed", _draw_orders),
        ("Motion of each video and of the stimuli", _draw_motion),
    ]
    return (
        '<div class="plots">'
        + "".join(
            f"<figure><figcaption>{title}</figcaption>{_svg(draw, run)}</figure>"
            for title, draw in drawn
        )
        + "</div>"
    )


def _svg(draw: Callable[[Any, Mapping[str, Any]], None], run: Mapping[str, Any]) -> str:
    """A plot as SVG in the colour of the text around it."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.usetex": False,
        "font.size": 9,
    }
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), _INK)
    settings |= dict.fromkeys(("xtick.color", "ytick.color"), _INK)
    with matplotlib.rc_context(settings):
        height = 1.5 + 0.32 * len(run["judges"])
        figure = Figure(figsize=(5.2, max(height, 2.8)), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_facecolor("none")
        draw(axes, run)
        content = io.StringIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    svg = content.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")


def _names(axes: Any, run: Mapping[str, Any]) -> tuple[list[Any], np.ndarray]:
    """Judges down the side, those that count first: what they told, and where."""
    judges = sorted(run["judges"].items(), key=lambda item: not item[1]["counted"])
    places = np.arange(len(judges))[::-1]
    names = [f"{n} ({t['mark']})" if t["mark"] else n for n, t in judges]
    # what is outside text is no formula, whatever dollars it holds
    axes.set_yticks(places, [_short(name) for name in names], parse_math=False)
    axes.set_ylim(-0.7, len(judges) - 0.3)
    return [told for _, told in judges], places


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:12] + "…" + name[-21:]


def _shares(axes: Any) -> None:
    axes.set_xlim(-2, 102)
    axes.set_xlabel("top-1, %")


def _draw_judges(axes: Any, run: Mapping[str, Any]) -> None:
    judges, places = _names(axes, run)
    for told, place in zip(judges, places, strict=True):
        top1 = told["videos"]["top1"]
        if top1["value"] is None:
            continue
        colour = _BLUE if told["counted"] else _GREY
        axes.barh(place, 100 * top1["value"], 0.6, color=colour)
        if top1["low"] is not None:
            ends = [100 * top1["low"], 100 * top1["high"]]
            axes.plot(ends, [place, place], color=_INK, linewidth=1.2)
    for source, marker in (("stimuli", "D"), ("noise", "x")):
        values = [told.get(source, {}).get("top1", {}).get("value") for told in judges]
        known = [
            (100 * v, p) for v, p in zip(values, places, strict=True) if v is not None
        ]
        if known:
            style: dict[str, Any] = {"color": _ORANGE, "marker": marker, "zorder": 3}
            axes.scatter(*zip(*known, strict=True), s=26, label=source, **style)
    _shares(axes)
    _legend(axes)


def _draw_orders(axes: Any, run: Mapping[str, Any]) -> None:
    judges, places = _names(axes, run)
    kinds = [("as it is", "o", _BLUE), ("shuffled", "s", _ORANGE)]
    kinds += [("reversed", "<", "#3a9d6e"), ("frozen", "x", _GREY)]
    for row, (kind, marker, colour) in enumerate(kinds):
        known = []
        above = 0.24 - 0.16 * row  # none hides another
        for told, place in zip(judges, places, strict=True):
            videos = told["videos"]
            source = videos if kind == "as it is" else videos["order"][kind]
            if (value := source["top1"]["value"]) is not None:
                known.append((100 * value, place + above))
        if known:
            style = {"color": colour, "marker": marker}
            axes.scatter(*zip(*known, strict=True), s=26, label=kind, **style)
    axes.grid(axis="y", alpha=0.3)
    _shares(axes)
    _legend(axes)


def _draw_motion(axes: Any, run: Mapping[str, Any]) -> None:
    found = run["temporal"]
    key = "neighbour_change" if found["lacking"] else "warping_error"
    for source, marker, colour in (("videos", "o", _BLUE), ("stimuli", "D", _ORANGE)):
        energies = found["motion_energy"].get(f"each_{source}", [])
        errors = found[key].get(f"each_{source}", [])
        known = [
            pair for pair in zip(energies, errors, strict=True) if None not in pair
        ]
        if known:
            style = {"color": colour, "marker": marker, "alpha": 0.8}
            axes.scatter(*zip(*known, strict=True), s=22, label=source, **style)
    axes.set_xlabel("motion energy (variance over time)")
    axes.set_ylabel(key.replace("_", " "))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _legend(axes)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        place = {"loc": "outside upper right", "ncols": 4}
        axes.figure.legend(**place, frameon=False, handletextpad=0.2)


def _pictures(run: Mapping[str, Any], clips: Mapping[str, Any]) -> str:
    """Some of the videos beside their stimuli, and what judges see in them."""
    numbers = np.linspace(0, run["videos"] - 1, min(run["videos"], _SHOWN)).astype(int)
    lines = []
    for i in dict.fromkeys(numbers.tolist()):
        shown = [f"<td>{_text(run['classes'][i])}</td>"]
        for source in ("stimuli", "videos"):
            if len(clips[source]):
                shown.append(f"<td>{_strip(clips[source][i])}</td>")
        seen = "<br>".join(
            f"{_text(judge)}: {_seen(told['videos']['seen'][i], run['classes'][i])}"
            for judge, told in run["judges"].items()
        )
        lines.append(f"<tr>{''.join(shown)}<td><small>{seen}</small></td></tr>")
    heads = ["class", "stimulus", "synthesised", "seen as (bold: rightly)"]
    if not len(clips["stimuli"]):
        heads.remove("stimulus")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f"<figure><figcaption>{len(lines)} of {run['videos']} videos</figcaption>"
        f'<table class="pictures"><tr>{head}</tr>{"".join(lines)}</table></figure>'
    )


def _seen(name: str, right: str) -> str:
    return f"<b>{_text(name)}</b>" if name == right else _text(name)


def _strip(video: np.ndarray) -> str:
    """Frames evenly spaced in time, side by side, as an image within the page."""
    from matplotlib.image import imsave

    t, h, w, _ = video.shape
    chosen = np.linspace(0, t - 1, min(t, _FRAMES)).round().astype(int)
    step = max(1, min(h, w) // _PIXELS)
    pixels = np.nan_to_num(video[chosen, ::step, ::step]).clip(0, 1)
    apart = np.pad(pixels, [(0, 0), (0, 0), (0, 2), (0, 0)], constant_values=1)
    row = np.concatenate(list(apart), axis=1)[:, :-2]
    content = io.BytesIO()
    bytes_of = (row * 255).round().astype(np.uint8)
    imsave(content, bytes_of, format="jpg", pil_kwargs={"quality": 88})
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="frames" src="data:image/jpeg;base64,{data}">'


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Evaluation</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em;
  padding: 0 1em }}
figure {{ margin: 1.5em 0; overflow-x: auto }}
figcaption {{ font-weight: 600; margin-bottom: .4em }}
table {{ border-collapse: collapse }}
td, th {{ text-align: right; padding: .25em .9em .25em 0; vertical-align: top }}
td:first-child, th:first-child, .pictures td, .pictures th {{ text-align: left }}
th {{ border-bottom: 1px solid #8888; font-weight: 500 }}
.quiet {{ opacity: .65 }}
.bold td {{ font-weight: 600; border-top: 1px solid #8888 }}
.cell {{ text-align: center; padding: .4em .9em;
  background: color-mix(in srgb, #3b82c4 calc(var(--share) * .7), transparent) }}
.plots {{ display: flex; flex-wrap: wrap; gap: 0 2em }}
.plots svg {{ width: 30em; max-width: 100%; height: auto }}
.pictures small {{ white-space: nowrap }}
img {{ height: 84px; image-rendering: pixelated }}
dt {{ font-weight: 600 }} dd {{ margin: 0 0 .5em 1.5em }}
</style>
<h1>Evaluation</h1>
{body}
</html>
"""
