"""The result of a synthesis: arrays, and ways to look at them.

A notebook shows a result that ends a cell: each stimulus beside the video made from it.

>>> result = synthesize(model, stimuli, ["jumping jack"])       # doctest: +SKIP
>>> result.save("jack")                                         # doctest: +SKIP
PosixPath('jack')
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from leaps_jax import files, pages, progress, render
from leaps_jax.errors import UserError, listed
from leaps_jax.model import ModelSpec

_SHOWN = 12  # videos within a cell of a notebook: each adds some 100 KB to its file
_SIDE = 224  # pixels of a video in a page, at most
_WIDTH = 176  # pixels at which a page shows it


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Result:
    """The result of `synthesize`.

    Attributes:
      videos: (n, t, h, w, 3) float32 pixels in [0, 1], after the last step.
      labels: (n,) target classes, -1 for none.
      metrics: {name: (steps, n)}: every raw term, `total`, `confidence`, `gradient`.
      weights: {term: weight}.
      numbers: (n,) of the videos in the run. Each of several processes gets the
        videos of its own devices and their labels, and the metrics of all.
      names: n class names; of a video without a class, what its objective looks at.
      spec: the facts of the inverted model.
      stimuli: (n, t, h, w, 3) that the videos were made from, or None.
    """

    videos: np.ndarray
    labels: np.ndarray
    metrics: dict[str, np.ndarray]
    weights: dict[str, float]
    numbers: np.ndarray
    names: tuple[str, ...]
    spec: ModelSpec
    stimuli: np.ndarray | None = None

    def __repr__(self) -> str:
        n, t, h, w, _ = self.videos.shape
        what = listed("videos" if n != 1 else "video", self.names, most=3)
        return f"Result({what}; {t} frames x {h} x {w} px, by {self.spec.name})"

    def _repr_html_(self) -> str:
        """What a notebook shows: a table that needs no other file."""
        return pages.render("result.html", **self._shown(_SHOWN))

    def show(self) -> None:
        """Plays the videos in a notebook, each beside its stimulus, in full size.

        Elsewhere it prints that `save` writes files to open.
        """
        if not progress.in_notebook():
            print("videos play in a notebook; result.save(folder) writes files to open")
            return
        videos, titles = list(self.videos), list(self.names)
        if self.stimuli is not None:
            pairs = zip(self.stimuli, self.videos, strict=True)
            videos = [video for pair in pairs for video in pair]
            titles = [
                title for name in self.names for title in (f"{name}: stimulus", name)
            ]
        columns = 4 if self.stimuli is None else 2
        render.show_videos(videos, titles, self.spec.fps, columns)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes the result into a new folder.

            videos.npz    videos and stimuli (n, t, h, w, 3), labels (n,)
            metrics.npz   each metric, (steps, n)
            videos/       NNN_<class>.mp4, and NNN_<class>_stimulus.mp4 beside it
            index.html    a page with all videos, which needs no other file
            run.json      classes, and weights of the terms

        `leaps-jax evaluate` takes the folder as a run.

        Args:
          folder: made if missing.

        Returns:
          The folder.

        Raises:
          UserError: the folder holds something, or videos cannot be written here.
          OSError: the disk is full.
        """
        folder = Path(folder)
        if reason := render.can_write():
            raise UserError(f"folder={str(folder)!r}: {reason}")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = "exists and is no empty folder; choose another"
            raise UserError(f"folder={str(folder)!r}: {what}")
        folder.mkdir(parents=True, exist_ok=True)
        stimuli = np.zeros_like(self.videos[:0])
        if self.stimuli is not None:
            stimuli = self.stimuli
        arrays = {"videos": self.videos, "stimuli": stimuli, "labels": self.labels}
        for name, content in (("videos", arrays), ("metrics", self.metrics)):
            np.savez(folder / f"{name}.npz", **content)  # type: ignore[arg-type]
        kinds = {"": self.videos, "_stimulus": stimuli}
        for number, name in enumerate(render.file_names(self.names)):
            for kind, videos in kinds.items():
                if number < len(videos):
                    path = folder / "videos" / f"{name}{kind}.mp4"
                    render.write_video(path, videos[number], self.spec.fps)
        page = pages.render("result_page.html", **self._shown(len(self.videos)))
        files.write(folder / "index.html", page)
        record = {"classes": self.names, "settings": {}, "weights": self.weights}
        files.write_json(folder / "run.json", record)
        return folder

    def _shown(self, most: int) -> dict[str, Any]:
        """What the templates show, of `most` videos."""

        def animated(video: np.ndarray) -> str:
            picture = render.animation(video, self.spec.fps, _SIDE)
            return pages.data_uri("image/webp", picture)

        given = self.stimuli
        last = self.metrics["confidence"][-1][self.numbers]
        return {
            "model": self.spec.name,
            "width": _WIDTH,
            "of": len(self.videos),
            "has_given": given is not None,
            "rows": [
                {
                    "name": name,
                    "made": animated(self.videos[i]),
                    "given": animated(given[i]) if given is not None else None,
                    "sure": float(last[i]) if self.labels[i] >= 0 else None,
                }
                for i, name in enumerate(self.names[:most])
            ],
        }
