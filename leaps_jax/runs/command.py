"""The command that repeats a run, from what its run.json says."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from leaps_jax.config import preset

#: Settings of `Config` that have an argument of their own.
_ARGUMENTS = ("steps", "seed", "parametrization")


def repeating(
    settings: Mapping[str, Any], classes: Sequence[str], judges: Iterable[str]
) -> str | None:
    """A line for a shell, or None where a program made the run.

    Paths are those that the run was given, but for absolute ones: of these only the
    last part is told, since the line is for others.

    Args:
      settings: of run.json.
      classes: of the model, in the order of its logits.
      judges: references of models that classify the result.
    """
    if not {"model", "labels", "config"} <= settings.keys():
        return None
    pinned = settings.get("pinned", {})  # of weights with an address, which may change
    words = ["--model", portable(pinned.get(settings["model"], settings["model"]))]
    if verifier := settings.get("verifier"):
        words += ["--verifier", portable(pinned.get(verifier, verifier))]
    if asked := [portable(pinned.get(name, name)) for name in judges]:
        words += ["--judge", *asked]
    if settings.get("stimulus"):
        words += ["--stimulus", *map(portable, settings["stimulus"])]
    if settings.get("objective"):
        words += ["--objective", settings["objective"]]
    else:
        labels = settings["labels"][:: settings["copies"]]
        words += ["--label", *(_label(number, classes) for number in labels)]
    for name in ("method", "copies", "short", "dtype", "frames", "size", "stride"):
        if settings.get(name) not in (None, _DEFAULTS.get(name)):
            words += [f"--{name}", str(settings[name])]
    config = settings["config"]
    for name in _ARGUMENTS:
        words += [f"--{name}", str(config[name])]
    method = settings["method"] or "activation_maximization"  # of an objective
    usual = preset(method, config["parametrization"])
    if changed := [
        f"{name}={value}"
        for name, value in config.items()
        if name not in _ARGUMENTS and value != getattr(usual, name, None)
    ]:
        words += ["--set", *changed]
    return _in_lines(["leaps-jax", "synthesize", *words, "--out", "run"])


_LINE = 48  # characters, after which a line of the command ends
_DEFAULTS = {"method": "leaps", "copies": 1, "short": "refuse"}


def _in_lines(words: Sequence[str]) -> str:
    """Words for a shell; lines end before an option."""
    lines = [""]
    for word in words:
        if word.startswith("--") and len(lines[-1]) > _LINE:
            lines.append("   ")
        lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines).strip()


def portable(reference: str) -> str:
    """A path, or a model with one, without folders of one machine.

    >>> portable("x3d_xs@/home/me/weights/x3d"), portable("clips/jack.mp4")
    ('x3d_xs@x3d', 'clips/jack.mp4')
    """
    name, at, path = reference.partition("@")
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(reference).is_absolute():
            return kind(reference).name
        if at and kind(path).is_absolute():
            return f"{name}@{kind(path).name}"
    return reference


def _label(number: int, classes: Sequence[str]) -> str:
    """The name of a class, or its number where the name is no word for a command."""
    name = classes[number]
    if not name.strip() or name.startswith("-") or classes.index(name) != number:
        return str(number)
    return name
