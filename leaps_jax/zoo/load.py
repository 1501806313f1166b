"""Models by reference: a name of the zoo and weights from somewhere.

>>> model = load_model("x3d_xs@X3D_XS.pyth")                      # doctest: +SKIP
>>> save(model, "x3d_xs_kinetics")                                # doctest: +SKIP
>>> model = load_model("x3d_xs@x3d_xs_kinetics")                  # doctest: +SKIP
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.errors import UserError
from leaps_jax.model import MOST_CLASSES, Model, ModelSpec, Moments
from leaps_jax.runtime import parallel
from leaps_jax.zoo import addresses, checkpoints, references
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo.conversion import namings, rules, sources


def convert(
    name: str | None,
    source: str | os.PathLike[str] | Mapping[str, np.ndarray],
    *,
    moments: Moments | None = None,
) -> Model:
    """A model with published weights.

    Args:
      name: of the zoo; None for the only model with weights of such names and shapes.
      source: a file or folder that `conversion.sources.read` accepts, its address (see
        `zoo.addresses`), or its tensors.
      moments: per tap the mean and variance per channel over natural clips, to verify
        with a model that has no batch norm.

    Returns:
      The model, in float32. With 400 outputs its classes are those of Kinetics-400,
      else "class 0", "class 1" and so on.

    Raises:
      UserError: the file cannot be read or is of another model, or of several where no
        name is given.

    >>> convert("slow_r50", "SLOW_8x8_R50.pyth").spec.frames      # doctest: +SKIP
    8
    """
    if name is not None:
        zoo.entry(name)
    if isinstance(source, Mapping):
        origin, tensors = "tensors", source
    else:
        # bytes of a path that are no UTF-8 cannot be kept in a checkpoint
        origin = os.fsencode(source).decode("utf-8", "replace")
        if (address := addresses.parse(origin)) is not None:
            fetched = references.fetch(address)
            source, origin = fetched.path, fetched.page
        tensors = sources.read(source)
    try:
        name = _identified(tensors) if name is None else name
        naming = namings.recognise(name, tensors)
        module, spec, variables = _converted(name, tensors, naming)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    spec = dataclasses.replace(
        spec, licence=zoo.entry(name).licence, source=f"{origin} ({naming.name})"
    )
    return Model(module, variables, spec, moments=moments)


def _identified(tensors: Mapping[str, np.ndarray]) -> str:
    candidates = namings.candidates(tensors)
    fitting = [name for name, naming in candidates if _fits(name, tensors, naming)]
    if len(fitting) > 1:
        raise UserError(
            f"these can be weights of {' or '.join(fitting)}, which differ in no name"
            " or shape; say which by its name"
        )
    # where none fits, converting to the first says what does not
    return (fitting or [candidates[0][0]])[0]


def _converted(
    name: str, tensors: Mapping[str, np.ndarray], naming: rules.Naming
) -> Any:
    outputs = _outputs(tensors, naming) or len(zoo.KINETICS_400)
    classes = tuple(f"class {i}" for i in range(outputs))
    if outputs == len(zoo.KINETICS_400):
        classes = zoo.KINETICS_400
    module, spec = zoo.build(name, classes, **dict(naming.overrides))
    shapes = zoo.variable_shapes(module)
    try:
        return module, spec, rules.convert_tensors(tensors, naming, shapes)
    except UserError as error:
        fitting = [
            n for n in namings.siblings(name, naming) if _fits(n, tensors, naming)
        ]
        if not fitting:
            raise
        raise UserError(
            f"these are weights of {' or '.join(fitting)}, not of {name}; {error}"
        ) from None


def _outputs(tensors: Mapping[str, np.ndarray], naming: rules.Naming) -> int | None:
    """How many classes the classifier has; None where there is no classifier."""
    head = rules.head_shape(tensors, naming, "classifier")
    if head is None:
        return None
    if not head or not 0 < head[0] <= MOST_CLASSES:
        what = f"its classifier of shape {head} is one of no classes"
        raise UserError(f"{what}, or of too many; give trained weights")
    return head[0]


def _fits(name: str, tensors: Mapping[str, np.ndarray], naming: rules.Naming) -> bool:
    classes = ("",) * (_outputs(tensors, naming) or 1)
    module, _ = zoo.build(name, classes, **dict(naming.overrides))
    try:
        rules.place(tensors, naming, zoo.variable_shapes(module))
    except UserError:
        return False
    return True


def save(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    half: bool = False,
    overwrite: bool = False,
) -> Path:
    """Writes a model of the zoo to a folder that `load_model` reads.

    `half` stores parameters in bfloat16, in half of the space.

    Raises:
      UserError: the model's name is not of the zoo, or the folder exists.
    """
    return checkpoints.save_model(
        folder,
        model.variables,
        model.spec,
        architecture=zoo.architecture(model.spec.name, model.module),
        moments=model.moments,
        extra=extra,
        half=half,
        overwrite=overwrite,
    )


def load_model(
    reference: str,
    *,
    dtype: Any = None,
    remat: bool = False,
    argument: str = "model",
) -> Model:
    """The model of a reference `NAME@WEIGHTS`.

    Args:
      reference: a name of the zoo, and one of: a folder that `save` wrote, a weight
        file or folder that `convert` accepts, the address of either (see
        `zoo.addresses`), or the name of shipped weights. A plain name means shipped
        weights, unless it is a file or a folder that `save` wrote: a folder `actions`
        of clips does not hide `x3d_xs@actions`.
      dtype: compute type; bfloat16 on a GPU or TPU and float32 on a CPU if None.
      remat: recompute blocks in the backward pass, to save memory; on CPUs XLA undoes
        it.
      argument: the name that errors give to `reference`.

    Raises:
      UserError: there is no such model, no such weights, or they do not fit.
      OSError: an address cannot be reached, or what it holds cannot be written.

    >>> load_model("x3d_xs@weights")                              # doctest: +SKIP
    >>> load_model("x3d_xs@hf:owner/repo")                        # doctest: +SKIP
    """
    try:
        model = _referenced(reference)
    except UserError as error:
        raise UserError(f"{argument}={reference!r}: {error}") from None
    module = model.module.clone(dtype=compute_type(dtype), remat=remat)
    return dataclasses.replace(model, module=module)


def _referenced(reference: str) -> Model:
    found = references.located(reference)
    path, fetched = found.path, found.fetched
    if not (path.is_dir() and checkpoints.is_model(path)):
        return convert(found.name, reference.partition("@")[2] if fetched else path)
    model = _saved(found.name, path)
    if fetched:  # a copy is known by its own address
        spec = dataclasses.replace(model.spec, source=fetched.page)
        model = dataclasses.replace(model, spec=spec)
    return model


def initialize(
    name: str,
    classes: Sequence[str],
    *,
    frames: int | None = None,
    size: int | None = None,
    stride: int | None = None,
    dtype: Any = None,
    remat: bool = False,
    seed: int = 0,
) -> Model:
    """A model with random weights, to train.

    Args:
      name: of the zoo.
      classes: names of the classes, in the order of the logits.
      frames: of a clip; this and the next two are the zoo's if None.
      size: of a clip, in pixels.
      stride: source frames from one frame of a clip to the next.
      dtype: compute type, as for `load_model`.
      remat: recompute blocks in the backward pass, to save memory.
      seed: of the weights.

    Raises:
      UserError: there is no such model, or it cannot take such clips.

    >>> initialize("x3d_xs_small", ("left", "right")).spec.size    # doctest: +SKIP
    112
    """
    module, spec = zoo.build(
        name,
        tuple(classes),
        frames=frames,
        size=size,
        dtype=compute_type(dtype),
        remat=remat,
    )
    if stride is not None:
        spec = dataclasses.replace(spec, stride=stride)
    return Model(module, _initialized(module, spec, seed), spec)


def _initialized(module: Any, spec: ModelSpec, seed: int) -> Mapping[str, Any]:
    video = np.zeros((1, spec.frames, spec.size, spec.size, 3), np.float32)
    try:
        with parallel.on_processor():  # a GPU compiles hundreds of draws for a minute
            drawn = jax.jit(module.init)(jax.random.key(seed), video)
            return jax.tree.map(np.asarray, drawn)
    except ValueError as error:  # the architecture's own words
        reason = str(error).splitlines()[0]
        message = f"frames={spec.frames} size={spec.size}: {reason}"
        raise UserError(message) from None


def for_classes(
    model: Model,
    classes: Sequence[str],
    *,
    frames: int | None = None,
    size: int | None = None,
    stride: int | None = None,
    seed: int = 0,
) -> Model:
    """A trained model with a new, random classifier: where fine-tuning starts.

    Every other weight is kept, the classifier too if the classes are the model's own.

    Args:
      model: of the zoo.
      classes: names of the new classes.
      frames: of a clip; this and the next two are the model's own if None.
      size: of a clip, in pixels.
      stride: source frames from one frame of a clip to the next.
      seed: of the new classifier.

    Raises:
      UserError: the weights do not fit clips of that length or size.

    >>> for_classes(load_model("x3d_xs@actions"), ("run", "walk"))   # doctest: +SKIP
    """
    spec = dataclasses.replace(
        model.spec,
        classes=tuple(classes),
        frames=model.spec.frames if frames is None else frames,
        size=model.spec.size if size is None else size,
        stride=model.spec.stride if stride is None else stride,
    )
    if spec == model.spec:
        return model
    module = model.module.clone(
        num_classes=spec.num_classes, frames=spec.frames, size=spec.size
    )
    fresh = _initialized(module, spec, seed)
    params = dict(model.variables["params"])
    if spec.classes != model.spec.classes:
        params["classifier"] = fresh["params"]["classifier"]
    shapes = [jax.tree.map(jnp.shape, p) for p in (params, fresh["params"])]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"frames={spec.frames} size={spec.size}: these weights are made for"
            f" {model.spec.frames} frames of {model.spec.size} pixels; leave it out"
        )
    variables = dict(model.variables) | {"params": params}
    return Model(module, variables, spec)


def compute_type(dtype: Any) -> Any:
    """A module's `dtype`: None is float32 there, and the machine's choice here.

    Raises:
      UserError: no network computes in it.
    """
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    known = {"float32": None, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
    try:
        return known[jnp.dtype(dtype).name]
    except (TypeError, KeyError):
        raise UserError(f"dtype={dtype}: must be float32 or bfloat16") from None


def _saved(name: str, folder: Path) -> Model:
    saved = checkpoints.load(folder)
    built = saved.architecture
    if built.get("name") != name:
        raise UserError(
            f"{folder}: holds weights of {built.get('name')}, not of {name}; write"
            f" {built.get('name')}@{folder}"
        )
    overrides = {k: _tuples(v) for k, v in built["overrides"].items()}
    try:
        _check_depth(overrides, len(jax.tree.leaves(saved.variables)))
        module, _ = zoo.build(
            name,
            saved.spec.classes,
            frames=built["frames"],
            size=built["size"],
            **overrides,
        )
        shapes = zoo.variable_shapes(module)
    except MemoryError:
        raise
    except Exception as error:  # the architecture's own words, of many kinds
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f"{folder}/model.json: architecture: cannot be built ({reason}); make the"
            " checkpoint again"
        ) from None
    checkpoints.check_fits(folder, saved.variables, shapes)
    return Model(module, saved.variables, saved.spec, moments=saved.moments)


def _check_depth(overrides: Mapping[str, Any], tensors: int) -> None:
    """Refuses more blocks than a checkpoint has tensors: each is traced, at length."""
    for name, value in overrides.items():
        blocks = sum(value) if isinstance(value, tuple) else value
        if "depth" in name and blocks > tensors:
            raise UserError(f"{name}={value}: more blocks than tensors")


def _tuples(value: Any) -> Any:
    """JSON made lists of tuples; a module's fields must be hashable."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
