"""The page of an evaluation: one file, with its plots and pictures inside."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from leaps_jax import pages
from leaps_jax.evaluation import plots, tables

_SHOWN, _FRAMES, _PIXELS = 8, 4, 96  # videos of a run, frames of each, pixels of these


def page(
    report: Mapping[str, Any], finished: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """A page in HTML that needs no other file.

    Args:
      report: from `runs.comparison.compare`.
      finished: by run, its `videos` and `stimuli` (n, t, h, w, 3), to show some of.
    """
    runs = report["runs"]
    judges = dict.fromkeys(judge for run in runs.values() for judge in run["judges"])
    return pages.render(
        "evaluation.html",
        runs=runs,
        judges=list(judges),
        tables=tables.of(report)[-2:],
        judged={name: tables.judged(name, run) for name, run in runs.items()},
        notes={n: tables.notes({"runs": {n: run}}) for n, run in runs.items()},
        plots={
            name: {
                title: pages.data_uri("image/svg+xml", svg)
                for title, svg in plots.draw(run).items()
            }
            for name, run in runs.items()
        },
        pictures={
            name: list(_pictures(runs[name], clips))
            for name, clips in (finished or {}).items()
        },
        meanings=tables.MEANINGS,
        columns={
            word: meaning
            for words, meaning in tables.MEANINGS.items()
            for word in words.split(", ")
        },
        share=tables.percent,
    )


def _pictures(
    run: Mapping[str, Any], clips: Mapping[str, Any]
) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Some of the videos: class, pictures of stimulus and video, what judges see."""
    numbers = np.linspace(0, run["videos"] - 1, min(run["videos"], _SHOWN)).astype(int)
    for i in dict.fromkeys(numbers.tolist()):
        sources = [name for name in ("stimuli", "videos") if len(clips[name])]
        seen = {
            judge: told["videos"]["seen"][i] for judge, told in run["judges"].items()
        }
        yield run["classes"][i], [_strip(clips[name][i]) for name in sources], seen


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
    raw = (row * 255).round().astype(np.uint8)
    imsave(content, raw, format="jpg", pil_kwargs={"quality": 88})
    return pages.data_uri("image/jpeg", content.getvalue())
