"""Options of several commands as models, settings and labelled clips."""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from leaps_jax import attacks, objectives, parametrizations, taps
from leaps_jax.actions import motions, scenes
from leaps_jax.actions.skeleton import JOINTS
from leaps_jax.config import Config, preset
from leaps_jax.data import clips, datasets
from leaps_jax.errors import UserError, nearest
from leaps_jax.model import Model, ModelSpec, Moments
from leaps_jax.progress import Steps
from leaps_jax.runtime import executable_cache, multihost


def config(options: argparse.Namespace) -> Config:
    """The settings of a synthesis."""
    if options.method not in objectives.METHODS:
        hint = nearest(options.method, objectives.METHODS)
        raise UserError(f"method={options.method!r}: unknown; {hint}")
    if options.copies < 1:
        raise UserError(f"copies={options.copies}: must be at least 1")
    check_parametrization(options)
    if any(text.partition("=")[0] == "parametrization" for text in options.set):
        raise UserError(
            "--set parametrization: has settings of its own; write --parametrization"
        )
    numbers = {"steps": options.steps, "seed": options.seed}
    changes = {name: value for name, value in numbers.items() if value is not None}
    method = "activation_maximization" if options.objective else options.method
    found = preset(method, options.parametrization, **changes)
    found = found.updated(options.set)
    parametrizations.from_config(found)  # refuses settings that do not go together
    return found


def check_parametrization(options: argparse.Namespace) -> None:
    """Refuses a name that is unknown."""
    if options.parametrization not in parametrizations.PARAMETRIZATIONS:
        hint = nearest(options.parametrization, parametrizations.PARAMETRIZATIONS)
        given = f"parametrization={options.parametrization!r}"
        raise UserError(f"{given}: unknown; {hint}")


def executables() -> executable_cache.ExecutableCache | None:
    """The cache of compiled steps; JAX's own cache needs a trace to find one."""
    folder = executable_cache.folder()
    return executable_cache.ExecutableCache(folder / "programs") if folder else None


def moments(model: Model, clips: np.ndarray) -> Moments:
    """The moments of a model's taps on clips."""
    first = multihost.first()
    with Steps("moments", len(clips), 0, first, "clips", brief=True) as steps:
        return taps.estimate_moments(model, clips, progress=steps.update)


def attack(
    argument: str,
    default: Callable[[float], attacks.Attack],
    options: argparse.Namespace,
) -> attacks.Attack | None:
    """The attack whose radius is an argument; None where that is left out."""
    radius = getattr(options, argument)
    given: dict[str, Any] = {
        name: value
        for name in ("steps", "step", "start", "restarts")
        if (value := getattr(options, f"attack_{name}", None)) is not None
    }
    if radius is None:
        for name in given:
            raise UserError(f"attack-{name}: is for --{argument}; leave it out")
        return None
    if not 0 < radius < float("inf"):
        raise UserError(
            f"{argument}={radius:g}: must be a positive radius, in units of pixels in"
            " [0, 1] over a whole clip; 3 is usual for 16 frames of 80 to 112 pixels"
        )
    try:
        return dataclasses.replace(default(radius), **given)
    except UserError as error:
        raise UserError(f"attack-{error}") from None


def class_names(argument: str, options: argparse.Namespace) -> tuple[str, ...]:
    """The classes of the data set that an argument names, without its clips."""
    source = getattr(options, argument)
    if source in scenes.RENDERED:
        return motions.CLASSES
    return clips.class_names(
        source, data_dir=options.data_dir, argument=argument.replace("_", "-")
    )


def check_classes(
    argument: str, options: argparse.Namespace, classes: tuple[str, ...]
) -> None:
    """Refuses a data set with a class that is not one of `classes`."""
    for name in class_names(argument, options):
        if name not in classes:
            given = f"{argument.replace('_', '-')}={getattr(options, argument)!r}"
            raise UserError(
                f"{given}: its class {name!r} is not one of the model's; rename or"
                f" remove it ({nearest(name, classes)})"
            )


def labelled_clips(
    argument: str, options: argparse.Namespace, spec: ModelSpec, count: int
) -> datasets.Clips | datasets.Renderings:
    """The data set that an argument names: its clips, or `count` renderings."""
    source = getattr(options, argument)
    if source in scenes.RENDERED:
        draw = functools.partial(
            scenes.RENDERED[source],
            frames=spec.frames,
            size=spec.size,
            fps=spec.fps,
        )
        return datasets.Renderings(draw, motions.CLASSES, len(JOINTS), count)
    with Steps("read", unit="clips", waiting="", brief=True) as steps:
        return datasets.Clips(
            *clips.read_tree(
                source,
                round(spec.size * 8 / 7),
                progress=lambda done, total: steps.update(done, total=total),
                data_dir=options.data_dir,
                argument=argument.replace("_", "-"),
            )
        )


def held_out_clips(
    argument: str, options: argparse.Namespace, spec: ModelSpec
) -> datasets.Dataset:
    """A data set to evaluate on, with labels that index the classes of `spec`."""
    data = labelled_clips(argument, options, spec, 2000)
    if data.classes == spec.classes:
        return data
    if isinstance(data, datasets.Renderings):
        raise UserError(
            f"data: renderings are of the {len(data.classes)} synthetic actions, and"
            f" the model has {len(spec.classes)} classes; take another model or data"
        )
    index = np.array([spec.classes.index(name) for name in data.classes])
    return datasets.Clips(data.videos, index[data.labels], spec.classes)
