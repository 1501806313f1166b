"""The models by name: one literal table, and what can be asked of it.

>>> entry("x3d_xs").frames
4
>>> module, spec = build("x3d_xs_small", ("left", "right"))
>>> spec.num_classes
2
"""

import dataclasses
import functools
import importlib.resources
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core as jax_core

from leaps_jax.config import ModelSpec
from leaps_jax.errors import UserError, nearest
from leaps_jax.models import resnet, timesformer, vivit, x3d

Channels = tuple[float, float, float]

PYTORCHVIDEO = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/"
SCENIC = "https://storage.googleapis.com/scenic-bucket/"
SLOWFAST = "https://dl.fbaipublicfiles.com/pyslowfast/"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of a model without its weights.

    Attributes:
      name: in this zoo.
      title: the paper's name.
      family: of architectures that share namings of published weights.
      module: the class of the network.
      fields: keyword arguments of `module`.
      frames: of a clip.
      stride: source frames from one frame of a clip to the next, at about 30 a second.
      size: height and width of a clip, in pixels.
      parameters: with the 400 classes of Kinetics, as counted by `parameters`.
      gmacs: 1e9 multiply-accumulates of one clip, as counted by `gmacs`.
      taps: number of norm layers.
      licence: of the public weights.
      weights: where a user gets them.
      namings: the sources whose files convert.
      mean: per RGB channel, of pixels in [0, 1].
      std: likewise.
    """

    name: str
    title: str
    family: str
    module: type[nn.Module]
    fields: Mapping[str, Any]
    frames: int
    stride: int
    size: int
    parameters: int
    gmacs: float
    taps: int
    licence: str = ""
    weights: tuple[str, ...] = ()
    namings: tuple[str, ...] = ()
    mean: Channels = (0.45, 0.45, 0.45)
    std: Channels = (0.225, 0.225, 0.225)


# Clips and addresses from the model zoos of pytorchvideo, SlowFast and Scenic, whose
# code is Apache-2.0 (as are the weights they publish with it), and of TimeSformer. The
# copy of Scenic's joint ViViT at Hugging Face has a card of its own.
_ENTRIES = (
    Entry(
        "slow_r50",
        "3D R50 (Slow 8x8)",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["slow_r50"],
        frames=8,
        stride=8,
        size=224,
        parameters=32_454_096,
        gmacs=41.74,
        taps=53,
        licence="Apache-2.0",
        weights=(
            PYTORCHVIDEO + "SLOW_8x8_R50.pyth",
            SLOWFAST + "model_zoo/kinetics400/SLOWONLY_8x8_R50.pkl",
        ),
        namings=("pytorchvideo", "slowfast", "caffe2"),
    ),
    Entry(
        "slow_r50_4x16",
        "3D R50 (Slow 4x16)",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["slow_r50_4x16"],
        frames=4,
        stride=16,
        size=224,
        parameters=32_454_096,
        gmacs=20.87,
        taps=53,
        licence="Apache-2.0",
        weights=(
            PYTORCHVIDEO + "SLOW_4x16_R50.pyth",
            SLOWFAST + "model_zoo/kinetics400/SLOWONLY_4x16_R50.pkl",
        ),
        namings=("pytorchvideo", "slowfast", "caffe2"),
    ),
    Entry(
        "i3d_r50",
        "I3D R50",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["i3d_r50"],
        frames=8,
        stride=8,
        size=224,
        parameters=28_043_472,
        gmacs=28.41,
        taps=53,
        licence="Apache-2.0",
        weights=(
            PYTORCHVIDEO + "I3D_8x8_R50.pyth",
            SLOWFAST + "model_zoo/kinetics400/I3D_8x8_R50.pkl",
        ),
        namings=("pytorchvideo_pooled", "slowfast", "caffe2"),
    ),
    Entry(
        "c2d_r50",
        "C2D R50",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["c2d_r50"],
        frames=8,
        stride=8,
        size=224,
        parameters=24_327_632,
        gmacs=19.49,
        taps=53,
        licence="Apache-2.0",
        weights=(PYTORCHVIDEO + "C2D_8x8_R50.pyth",),
        # SlowFast publishes its C2D without the temporal pool: another network
        namings=("pytorchvideo_pooled",),
    ),
    Entry(
        "x3d_xs",
        "X3D-XS",
        "x3d",
        x3d.X3D,
        x3d.VARIANTS["x3d_xs"],
        frames=4,
        stride=12,
        size=160,
        parameters=3_794_322,
        gmacs=0.605,
        taps=84,
        licence="Apache-2.0",
        weights=(SLOWFAST + "x3d_models/x3d_xs.pyth", PYTORCHVIDEO + "X3D_XS.pyth"),
        namings=("pytorchvideo", "slowfast"),
    ),
    Entry(
        "x3d_s",
        "X3D-S",
        "x3d",
        x3d.X3D,
        x3d.VARIANTS["x3d_s"],
        frames=13,
        stride=6,
        size=160,
        parameters=3_794_322,
        gmacs=1.963,
        taps=84,
        licence="Apache-2.0",
        weights=(SLOWFAST + "x3d_models/x3d_s.pyth", PYTORCHVIDEO + "X3D_S.pyth"),
        namings=("pytorchvideo", "slowfast"),
    ),
    Entry(
        "x3d_m",
        "X3D-M",
        "x3d",
        x3d.X3D,
        x3d.VARIANTS["x3d_m"],
        frames=16,
        stride=5,
        size=224,
        parameters=3_794_322,
        gmacs=4.732,
        taps=84,
        licence="Apache-2.0",
        weights=(SLOWFAST + "x3d_models/x3d_m.pyth", PYTORCHVIDEO + "X3D_M.pyth"),
        namings=("pytorchvideo", "slowfast"),
    ),
    Entry(
        "x3d_l",
        "X3D-L",
        "x3d",
        x3d.X3D,
        x3d.VARIANTS["x3d_l"],
        frames=16,
        stride=5,
        size=312,
        parameters=6_153_432,
        gmacs=18.37,
        taps=171,
        licence="Apache-2.0",
        weights=(SLOWFAST + "x3d_models/x3d_l.pyth", PYTORCHVIDEO + "X3D_L.pyth"),
        namings=("pytorchvideo", "slowfast"),
    ),
    Entry(
        "timesformer",
        "TimeSformer (divided, 8x32)",
        "timesformer",
        timesformer.TimeSformer,
        timesformer.VARIANTS["timesformer"],
        frames=8,
        stride=32,
        size=224,
        parameters=121_566_352,
        gmacs=195.8,
        taps=37,
        licence="CC BY-NC 4.0, non-commercial",
        weights=(
            "https://www.dropbox.com/s/g5t24we9gl5yk88/"
            "TimeSformer_divST_8x32_224_K400.pyth?dl=1",
            "https://huggingface.co/facebook/timesformer-base-finetuned-k400",
        ),
        namings=("official", "huggingface"),
    ),
    Entry(
        "vivit_b_16x2",
        "ViViT-B/16x2 (joint)",
        "vivit",
        vivit.ViViT,
        vivit.VARIANTS["vivit_b_16x2"],
        frames=32,
        stride=2,
        size=224,
        parameters=88_954_000,
        gmacs=451.5,
        taps=25,
        licence="Apache-2.0",
        weights=(
            "https://huggingface.co/google/vivit-b-16x2-kinetics400",
            SCENIC + "vivit/kinetics_400/vivit_base_16x2_unfactorized/checkpoint",
        ),
        namings=("huggingface", "scenic"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    Entry(
        "vivit_b_16x2_fe",
        "ViViT-B/16x2 (factorised encoder)",
        "vivit",
        vivit.ViViT,
        vivit.VARIANTS["vivit_b_16x2_fe"],
        frames=32,
        stride=2,
        size=224,
        parameters=115_062_928,
        gmacs=283.3,
        taps=34,
        licence="Apache-2.0",
        weights=(SCENIC + "vivit/kinetics_400/vivit_base_16x2_fe/checkpoint",),
        namings=("scenic",),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    Entry(
        "vivit_l_16x2_fe",
        "ViViT-L/16x2 (factorised encoder)",
        "vivit",
        vivit.ViViT,
        vivit.VARIANTS["vivit_l_16x2_fe"],
        frames=32,
        stride=2,
        size=224,
        parameters=606_827_920,
        gmacs=992.5,
        taps=98,
        licence="Apache-2.0",
        weights=(SCENIC + "vivit/kinetics_400/vivit_large_16x2_fe/checkpoint",),
        namings=("scenic",),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    # this project's: for data sets of a few thousand short clips
    Entry(
        "slow_r50_small",
        "3D ResNet-26 (small)",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["slow_r50_small"],
        frames=16,
        stride=2,
        size=112,
        parameters=4_958_448,
        gmacs=4.165,
        taps=29,
    ),
    Entry(
        "slow_r50_tiny",
        "3D ResNet-26 (tiny)",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["slow_r50_tiny"],
        frames=16,
        stride=2,
        size=80,
        parameters=2_871_640,
        gmacs=1.286,
        taps=29,
    ),
    Entry(
        "x3d_xs_small",
        "X3D-XS (small)",
        "x3d",
        x3d.X3D,
        x3d.VARIANTS["x3d_xs_small"],
        frames=16,
        stride=2,
        size=112,
        parameters=2_617_638,
        gmacs=0.685,
        taps=42,
    ),
    Entry(
        "timesformer_small",
        "TimeSformer (small)",
        "timesformer",
        timesformer.TimeSformer,
        timesformer.VARIANTS["timesformer_small"],
        frames=16,
        stride=2,
        size=112,
        parameters=4_083_304,
        gmacs=3.695,
        taps=22,
    ),
    Entry(
        "vivit_small",
        "ViViT (small, factorised encoder)",
        "vivit",
        vivit.ViViT,
        vivit.VARIANTS["vivit_small"],
        frames=16,
        stride=2,
        size=112,
        parameters=2_894_440,
        gmacs=1.317,
        taps=17,
    ),
)
_BY_NAME = {e.name: e for e in _ENTRIES}

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
    """What `build` needs to make `module` again, apart from classes: JSON-able.

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
    return jax.eval_shape(module.init, jax.random.key(0), video)


@functools.cache
def parameters(name: str, classes: int = 400) -> int:
    """Number of parameters.

    >>> parameters("x3d_xs")
    3794322
    """
    module, _ = build(name, ("",) * classes)
    leaves = jax.tree.leaves(variable_shapes(module)["params"])
    return sum(math.prod(leaf.shape) for leaf in leaves)


@functools.cache
def gmacs(name: str, classes: int = 400) -> float:
    """Multiply-accumulates of convolutions and matrix products for one clip, in 1e9.

    Papers call this GFLOPs.

    >>> round(gmacs("x3d_xs"), 3)
    0.605
    """
    module, spec = build(name, ("",) * classes)
    shape = (1, spec.frames, spec.size, spec.size, 3)
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    jaxpr = jax.make_jaxpr(module.apply)(variable_shapes(module), video)
    return _macs(jaxpr.jaxpr) / 1e9


def table() -> list[dict[str, Any]]:
    """One row per model, JSON-able.

    >>> table()[4]["name"], table()[4]["taps"]
    ('x3d_xs', 84)
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
        for e in _ENTRIES
    ]


def _macs(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        shapes = [getattr(v.aval, "shape", ()) for v in eqn.invars]
        outputs = math.prod(
            getattr(eqn.outvars[0].aval, "shape", ()) if eqn.outvars else ()
        )
        if eqn.primitive.name == "conv_general_dilated":
            out_channels = eqn.params["dimension_numbers"].rhs_spec[0]
            total += outputs * math.prod(shapes[1]) // shapes[1][out_channels]
        elif eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            total += outputs * math.prod(shapes[0][axis] for axis in contracted)
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                total += _macs(getattr(value, "jaxpr", value))
    return total


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, jax_core.Jaxpr | jax_core.ClosedJaxpr)
