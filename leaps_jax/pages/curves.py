"""Curves as SVG within a page, in the colours of its style.

>>> "<svg" in chart("loss", [0, 10], [Curve("total", (3.0, 1.0))])
True
"""

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 28
_POINTS = 200  # of a curve: more are not seen
_COLOURS = 8
_WIDE = 20.0  # times that the largest value has the smallest: a log scale helps


@dataclasses.dataclass(frozen=True)
class Curve:
    """A number at each step; values that are not finite are left out."""

    name: str
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        known = [v for v in self.values if math.isfinite(v)]
        return known[-1] if known else math.nan


def chart(
    title: str, steps: Sequence[int], curves: Sequence[Curve], share: bool = False
) -> Markup:
    """A figure with a legend, which tells the last value of each curve.

    Args:
      title: above it.
      steps: of the values.
      curves: each with as many values; drawn in the order given.
      share: whether values are shares of 1.
    """
    known = [v for curve in curves for v in curve.values if math.isfinite(v)]
    if not known or len(steps) < 2:
        return Markup("")
    low, high = min(known), max(known)
    log = not share and low > 0 and high > _WIDE * low
    if share:
        low, high = 0.0, 1.0
    elif not log and low > 0:
        low = 0.0
    if low == high:
        low, high = low - 1, high + 1

    def across(step: float) -> float:
        share_of = (step - steps[0]) / max(steps[-1] - steps[0], 1)
        return _LEFT + share_of * (_WIDTH - _LEFT - _RIGHT)

    def down(value: float) -> float:
        ends = (math.log(low), math.log(high)) if log else (low, high)
        at = math.log(value) if log else value
        share_of = (at - ends[0]) / (ends[1] - ends[0])
        return _HEIGHT - _BOTTOM - share_of * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks(low, high, log):
        said, y = (f"{tick:.0%}" if share else f"{tick:g}"), down(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}"'
            f' y2="{y:.1f}"/><text x="{_LEFT - 6}" y="{y + 4:.1f}"'
            f' text-anchor="end">{said}</text>'
        )
    for i, tick in enumerate(ends := ticks(steps[0], steps[-1], False)):
        anchor = "end" if i == len(ends) - 1 else "middle" if i else "start"
        said = f"step {tick:g}" if anchor == "end" else f"{tick:g}"
        parts.append(
            f'<text x="{across(tick):.1f}" y="{_HEIGHT - 8}"'
            f' text-anchor="{anchor}">{said}</text>'
        )
    every = math.ceil(len(steps) / _POINTS)
    for number, curve in enumerate(curves):
        chosen = sorted({*range(0, len(steps), every), len(steps) - 1})
        points = " ".join(
            f"{across(steps[i]):.1f},{down(curve.values[i]):.1f}"
            for i in chosen
            if math.isfinite(curve.values[i])
        )
        parts.append(
            f'<polyline class="curve c{number % _COLOURS}" points="{points}">'
            f"<title>{escape(curve.name)}</title></polyline>"
        )
    parts.append(
        f'<line class="marker" data-first="{steps[0]}" data-last="{steps[-1]}"'
        f' data-left="{_LEFT}" data-right="{_WIDTH - _RIGHT}" y1="{_TOP}"'
        f' y2="{_HEIGHT - _BOTTOM}" x1="0" x2="0" visibility="hidden"/>'
    )
    legend = "".join(
        f'<li><svg class="key c{number % _COLOURS}" viewBox="0 0 10 4"'
        f' aria-hidden="true"><line class="curve" x1="0" x2="10" y1="2" y2="2"/></svg>'
        f"<span>{escape(curve.name)}</span><b>{_said(curve.last, share)}</b></li>"
        for number, curve in enumerate(curves)
    )
    scale = ", log scale" if log else ""
    return Markup(
        f'<figure class="chart"><figcaption>{escape(title)}{scale}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{escape(title)}, over steps {steps[0]} to {steps[-1]}">'
        f'{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>'
    )


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers from `low` to `high`, three to seven of them.

    >>> ticks(0, 1, False), ticks(0.02, 7, True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.1, 1.0])
    >>> ticks(0.3, 7, True)
    [0.5, 1.0, 2.0, 5.0]
    """
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = math.ceil(len(powers) / 7)
        tens = [10.0**p for p in powers if p % every == 0 and low <= 10.0**p <= high]
        if len(tens) > 1:
            return tens
        found = [m * 10.0**p for p in powers for m in (1, 2, 5)]
        return [float(f"{v:g}") for v in found if low <= v <= high]
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    unit = next(m * size for m in (1, 2, 5, 10) if m * size >= rough * 0.999)
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    return [float(f"{i * unit:g}") for i in range(first, last + 1)]


def _said(value: float, share: bool) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.0%}".replace("%", " %") if share else f"{value:.3g}"
