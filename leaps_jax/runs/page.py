"""index.html of a run: one file that shows what went in, what came out, who sees what.

It asks for no other file, so that it can be sent to anyone. It is written when a run
starts, and again at every preview, from what the folder holds by then.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leaps_jax import files, pages, render
from leaps_jax.model import ModelSpec
from leaps_jax.pages.curves import Curve, chart
from leaps_jax.runs import command, metrics, previews
from leaps_jax.runs.verdicts import PARTS, Seen
from leaps_jax.synthesis import Problem
from leaps_jax.zoo import references

_BYTES = 28_000_000  # of a page, about; what is more is linked
_LINKED = 2000  # videos that are linked, at most
#: What the methods of `objectives.METHODS` are called, and what each does.
METHODS = {
    "leaps": (
        "LEAPS",
        "Noise is optimised until the frozen network sees the class and its features"
        " match those of the clip.",
    ),
    "activation_maximization": (
        "activation maximisation",
        "Noise is optimised until the frozen network sees the class.",
    ),
    "deep_dream": (
        "DeepDream",
        "The features that the frozen network already finds are made stronger.",
    ),
    "deep_inversion": (
        "DeepInversion-style inversion",
        "Noise is optimised until the frozen network sees the class and its features"
        " have the statistics of natural clips.",
    ),
}


#: Likewise of the kinds of `microscopes.parse`.
OBJECTIVES = {
    "channel": "Noise is optimised until one channel of the frozen network responds"
    " everywhere and at all times.",
    "neuron": "Noise is optimised until one channel of the frozen network responds at"
    " one place and time.",
    "layer": "Noise is optimised until a layer of the frozen network responds.",
}


def method(settings: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What made a run and what that does, from its settings; None of a program."""
    if objective := settings.get("objective"):
        return "feature visualisation", OBJECTIVES.get(objective.partition(":")[0])
    return METHODS.get(settings.get("method", ""), (None, None))


@dataclasses.dataclass(frozen=True)
class Card:
    """A video, beside the clip that it was primed by.

    Attributes:
      number: of the video.
      name: of its class.
      file: the name of its mp4 file, without the kind.
      made: the video as a data URI, None where there is no file yet.
      given: likewise of the clip.
      strips: {step: data URI of the frames side by side}, on the way to the video.
      still: the clip's frames side by side, where there is no file of it.
      seen: what judges see in the video.
    """

    number: int
    name: str
    file: str
    made: str | None
    given: str | None
    strips: dict[int, str]
    still: str | None
    seen: Seen

    @property
    def size(self) -> int:
        texts = [self.made, self.given, self.still, *self.strips.values()]
        return sum(len(text) for text in texts if text)


def write_page(
    folder: Path, problem: Problem, record: Mapping[str, Any], most: int = _BYTES
) -> None:
    """Writes index.html from what the folder of a run holds.

    Args:
      folder: of the run.
      problem: of the run.
      record: the content of run.json; before there are verdicts, `judging` may name
        the judges.
      most: bytes of the videos within the page; the others are linked.
    """
    spec, classes = problem.model.spec, problem.names
    settings = record.get("settings", {})
    cards = _cards(folder, problem, record, most)
    name, told = method(settings)
    asked_class = bool((problem.labels >= 0).all())
    model = command.portable(settings.get("model") or spec.name)
    verifier = settings.get("verifier")
    asked = record.get("judges") or record.get("judging", ())
    judges = [role for role in asked if role not in PARTS]
    page = pages.render(
        "run.html",
        script="run.js",
        title=" · ".join([model, _listed(classes, "{}"), name or "synthesis"]),
        model=model,
        classes=_listed(classes),
        method=name or "a synthesis in Python",
        told=told,
        record={"judges": {}} | dict(record),
        steps=problem.config.steps,
        running=record["status"] == "running",
        written=int(time.time()),
        has_given=problem.stimuli is not None,
        cards=cards,
        linked=_linked(folder, render.file_names(classes), len(cards)),
        of=len(classes),
        stages=_stages(cards, record),
        frames=spec.frames,
        fps=spec.fps,
        charts=charts(
            metrics.read(folder / "metrics.jsonl"), len(classes), asked_class
        ),
        asked_class=asked_class,
        command=command.repeating(settings, spec.classes, judges),
        settings=_settings(settings, record),
        weights=_weights(problem, model, verifier and command.portable(verifier)),
        moving=_has_views(problem),
    )
    files.write(folder / "index.html", page)


def add_preview(folder: Path, problem: Problem, step: int, videos: np.ndarray) -> None:
    """Keeps the first videos as they are after a step, for the page of the run.

    Args:
      folder: of the run.
      problem: of the run.
      step: that was done last.
      videos: (n, t, h, w, 3) in [0, 1], the first of the run.
    """
    path = folder / "previews.zip"
    previews.add(path, step, videos, problem.config.steps)


def _cards(
    folder: Path, problem: Problem, record: Mapping[str, Any], most: int
) -> list[Card]:
    """The first videos, as many as fit in a page."""
    classes = problem.names
    ready = record["status"] != "running" and "videos_not_written" not in record
    strips = previews.read(folder / "previews.zip")
    cards: list[Card] = []
    for number, file in enumerate(render.file_names(classes)):
        paths = [folder / "videos" / f"{file}{kind}.mp4" for kind in ("", "_stimulus")]
        made, given = (_embedded(path) if ready else None for path in paths)
        still = None
        if problem.stimuli is not None and given is None:
            if number >= previews.VIDEOS:
                break
            picture = previews.strip(problem.stimuli[number])
            still = pages.data_uri("image/jpeg", picture)
        own = {
            step: pages.data_uri("image/jpeg", pictures[number])
            for step, pictures in strips.items()
            if number < len(pictures)
        }
        seen = Seen.of(record.get("judges", {}), number, classes[number])
        card = Card(number, classes[number], file, made, given, own, still, seen)
        most -= card.size
        if most < 0 or (number >= previews.VIDEOS and made is None):
            break
        cards.append(card)
    return cards


def charts(
    lines: Sequence[Mapping[str, Any]], videos: int, asked_class: bool = True
) -> list[str]:
    """Curves of confidence and of all terms, from the lines of metrics.jsonl.

    Args:
      lines: of `metrics.read`.
      videos: of the run; the curves are means over them.
      asked_class: whether they were made for a class.
    """
    if not lines:
        return []
    steps = [line["step"] for line in lines]

    def curve(name: str, values: Sequence[Sequence[float]]) -> Curve:
        return Curve(name, tuple(float(np.mean(row)) for row in values))

    names = list(lines[-1]["weighted"])
    terms = [
        curve(name, [line["weighted"].get(name, [np.nan]) for line in lines])
        for name in names
    ]
    terms.sort(key=lambda term: -abs(np.nan_to_num(term.last)))
    total = curve("total", [line["total"] for line in lines])
    sure = curve("confidence", [line["confidence"] for line in lines])
    which = "" if asked_class else "likeliest "
    mean = f", mean of {videos} videos" if videos > 1 else ""
    found = [
        chart(f"Confidence in the {which}class{mean}", steps, [sure], share=True),
        chart(f"Loss, terms times weights{mean}", steps, [total, *terms]),
    ]
    return [figure for figure in found if figure]


def _embedded(path: Path) -> str | None:
    try:
        return pages.data_uri("video/mp4", path.read_bytes())
    except OSError:
        return None


def _listed(classes: Sequence[str], quoted: str = "“{}”", most: int = 2) -> str:
    """The names of classes, or of some and how many more there are."""
    names = [quoted.format(name) for name in dict.fromkeys(classes)]
    if len(names) <= most:
        return " and ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def _linked(folder: Path, names: Sequence[str], shown: int) -> list[str]:
    rest = [f"videos/{name}.mp4" for name in names[shown : shown + _LINKED]]
    return [name for name in rest if (folder / name).is_file()]


def _stages(cards: Sequence[Card], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the slider over the optimisation goes through: steps, and the result."""
    last = record["step"]
    ready = any(card.made for card in cards)
    steps = sorted({step for card in cards for step in card.strips})
    stages: list[dict[str, Any]] = [
        {"step": step, "said": f"step {step}", "result": False}
        for step in steps
        if not (ready and step >= last)
    ]
    if ready:
        said = "the result" if record["status"] == "finished" else "the last state"
        stages.append({"step": last, "said": said, "result": True})
    return stages


def _settings(
    settings: Mapping[str, Any], record: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Rows of a table."""
    rows = {k: v for k, v in settings.items() if k != "config"}
    rows |= settings.get("config", {})
    rows |= {key: record[key] for key in ("device", "devices") if key in record}
    rows |= record.get("versions", {})
    return [(name, _said(value)) for name, value in rows.items() if value or value == 0]


def _said(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    said = ", ".join(command.portable(str(v)) for v in values[:24])
    return said + (f" and {len(values) - 24} more" if len(values) > 24 else "")


def _weights(
    problem: Problem, model: str, verifier: str | None
) -> list[tuple[str, str, str]]:
    """Name, licence and, where it is an address, the source of each model's weights."""
    specs: list[tuple[str, ModelSpec]] = [(model, problem.model.spec)]
    if problem.verifier is not None:
        spec = problem.verifier.spec
        specs.append((verifier or spec.name, spec))
    return [
        (
            name,
            spec.licence or _licence_of_shipped(name),
            spec.source.split()[0] if spec.source.startswith("https://") else "",
        )
        for name, spec in specs
    ]


def _licence_of_shipped(reference: str) -> str:
    name, _, weights = reference.partition("@")
    if weights in references.shipped(name):
        return "Apache-2.0, the licence of leaps_jax, which they come with"
    return "not stated; ask whoever trained them"


def _has_views(problem: Problem) -> bool:
    """Whether each step sees the video changed at random."""
    config = problem.config
    changed = (config.view_scale, config.view_shift, config.view_noise)
    return any(changed) or bool(config.view_tint or config.roll or config.flip)
