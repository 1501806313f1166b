"""The models by name, and what can be asked of their table.

>>> entry("x3d_xs").frames
4
>>> module, spec = build("x3d_xs_small", ("left", "right"))
>>> spec.num_classes
2
"""

import dataclasses
import importlib.resources
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax.errors import UserError, nearest
from leaps_jax.model import ModelSpec
from leaps_jax.zoo.table import ENTRIES, Entry

_BY_NAME = {e.name: e for e in ENTRIES}

# The names of Kinetics-400 (Kay et al., arXiv:1705.06950) in the order of the logits of
# all public weights, which is alphabetical; as listed in torchvision's metadata
# (torchvision/models/_meta.py, BSD-3-Clause).
KINETICS_400 = tuple(
    importlib.resources.files("leaps_jax")
    .joinpath("kinetics_400.txt")
    .read_text(encoding="utf-8")
    .splitlines()
)


def names() -> list[str]:
    """The names of all models.

    >>> names()[:2]
    ['slow_r50', 'slow_r50_4x16']
    """
    return list(_BY_NAME)


def entry(name: str) -> Entry:
    """The entry of a model.

    Raises:
      UserError: there is no such model; the nearest names are offered.
    """
    if name not in _BY_NAME:
        raise UserError(f"model={name!r}: not in the zoo; {nearest(name, _BY_NAME)}")
    return _BY_NAME[name]


def build(
    name: str,
    classes: tuple[str, ...],
    *,
    frames: int | None = None,
    size: int | None = None,
    dtype: Any = None,
    remat: bool = False,
    **overrides: Any,
) -> tuple[nn.Module, ModelSpec]:
    """A module without weights, and its spec.

    Args:
      name: of the zoo.
      classes: names of the classes, in the order of the logits.
      frames: that the module is made for, the entry's if None. It sets the window of
        a head or the number of embeddings.
      size: likewise, in pixels.
      dtype: compute type, None for float32.
      remat: recompute blocks in the backward pass.
      **overrides: other fields of the module.

    Raises:
      UserError: the zoo has no such model, or the module no such field.
    """
    e = entry(name)
    known = {f.name for f in dataclasses.fields(e.module)} - {"parent", "name"}
    for field in overrides:
        if field not in known:
            raise UserError(f"{field}: no field of {name}; {nearest(field, known)}")
    spec = ModelSpec(
        name,
        frames=e.frames if frames is None else frames,
        size=e.size if size is None else size,
        classes=tuple(classes),
        stride=e.stride,
        mean=e.mean,
        std=e.std,
    )
    module = e.module(
        num_classes=len(classes),
        frames=spec.frames,
        size=spec.size,
        dtype=dtype,
        remat=remat,
        **{**e.fields, **overrides},
    )
    return module, spec


def architecture(name: str, module: nn.Module) -> dict[str, Any]:
    """The arguments with which `build` makes `module` again, but classes: JSON-able.

    >>> module, _ = build("x3d_m", ("a",), size=96, shortcut_norm_on_stride=False)
    >>> architecture("x3d_m", module)["overrides"]
    {'shortcut_norm_on_stride': False}
    """
    e = entry(name)
    if type(module) is not e.module:
        raise UserError(
            f"model={name}: is a {e.module.__name__}, not a {type(module).__name__}"
        )
    plain = {"num_classes", "frames", "size", "dtype", "remat", "parent", "name"}
    default = e.module(**e.fields)
    overrides = {
        f.name: getattr(module, f.name)
        for f in dataclasses.fields(module)
        if f.name not in plain and getattr(module, f.name) != getattr(default, f.name)
    }
    return {
        "name": name,
        "frames": module.frames,  # type: ignore[attr-defined]
        "size": module.size,  # type: ignore[attr-defined]
        "overrides": overrides,
    }


def variable_shapes(module: nn.Module) -> dict[str, Any]:
    """The variables of a zoo module as a tree of `ShapeDtypeStruct`."""
    frames, size = module.frames, module.size  # type: ignore[attr-defined]
    video = jax.ShapeDtypeStruct((1, frames, size, size, 3), jnp.float32)
    # the key inside, so that nothing is compiled to make it
    return jax.eval_shape(lambda video: module.init(jax.random.key(0), video), video)


def table() -> list[dict[str, Any]]:
    """One row per model, JSON-able.

    >>> table()[0]["name"], table()[0]["taps"]
    ('slow_r50', 53)
    """
    return [
        {
            "name": e.name,
            "paper": e.title,
            "family": e.family,
            "frames": e.frames,
            "stride": e.stride,
            "size": e.size,
            "parameters": e.parameters,
            "gmacs": e.gmacs,
            "taps": e.taps,
            "namings": list(e.namings),
            "weights": list(e.weights),
            "licence": e.licence,
        }
        for e in ENTRIES
    ]


COLUMNS = (
    *("name", "paper", "family", "clip", "parameters", "GMACs", "taps"),
    *("converts from", "licence of public weights"),
)


def cells() -> list[tuple[str, ...]]:
    """`table` as text under `COLUMNS`.

    >>> cells()[0][:4]
    ('slow_r50', '3D R50 (Slow 8x8)', 'resnet', '8x8, 224 px')
    """
    return [
        (
            e.name,
            e.title,
            e.family,
            f"{e.frames}x{e.stride}, {e.size} px",
            f"{e.parameters / 1e6:.2f} M",
            f"{e.gmacs:.4g}",
            str(e.taps),
            ", ".join(e.namings) or "-",
            e.licence or "-",
        )
        for e in ENTRIES
    ]


def markdown() -> str:
    """The table of README: `cells`, and links to public weights."""
    links = [
        ", ".join(f"[{i}]({address})" for i, address in enumerate(e.weights, 1)) or "-"
        for e in ENTRIES
    ]
    head = (*COLUMNS, "weights")
    rows = [
        (f"`{name}`", *rest, link)
        for (name, *rest), link in zip(cells(), links, strict=True)
    ]
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
