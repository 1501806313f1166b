"""The plots of an evaluation, each an SVG image.

Knows matplotlib, imported only to draw.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# A colour that no plot has otherwise; that of the reader's text takes its place.
_INK = "#010203"
_BLUE, _ORANGE, _GREY = "#3b82c4", "#d9822b", "#8c8c8c"
_STYLE = """<style>svg { color: #1c1c1a }
@media (prefers-color-scheme: dark) { svg { color: #ededea } }</style>"""


def draw(run: Mapping[str, Any]) -> dict[str, bytes]:
    """The plots of a run, SVG by title.

    Args:
      run: what `protocol.evaluate` found.
    """
    return {
        "Top-1 of each judge, with its interval": _svg(_draw_judges, run),
        "Top-1 when the order of frames is changed": _svg(_draw_orders, run),
        "Motion of each video and of the stimuli": _svg(_draw_motion, run),
    }


def _svg(
    draw: Callable[[Any, Mapping[str, Any]], None], run: Mapping[str, Any]
) -> bytes:
    """A plot whose text is dark on a light page, and light on a dark one."""
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
    svg = content.getvalue().replace(_INK, "currentColor")
    return svg.replace("<defs>", f"{_STYLE}<defs>", 1).encode()


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
