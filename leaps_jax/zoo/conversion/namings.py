"""How to tell the published names of tensors apart; their tables are in `families`."""

import re
from collections.abc import Iterable

from leaps_jax.errors import UserError
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo.conversion.families import (
    mvit,
    resnet,
    resnet18,
    swin,
    timesformer,
    uniformerv2,
    vivit,
    x3d,
)
from leaps_jax.zoo.conversion.rules import Naming

# Family of the zoo -> the namings that its weights come in.
NAMINGS: dict[str, tuple[Naming, ...]] = {
    "resnet": resnet.NAMINGS,
    "resnet18": resnet18.NAMINGS,
    "x3d": x3d.NAMINGS,
    "timesformer": timesformer.NAMINGS,
    "vivit": vivit.NAMINGS,
    "uniformerv2": uniformerv2.NAMINGS,
    "swin": swin.NAMINGS,
    "mvit": mvit.MVIT,
    "mvitv2": mvit.MVITV2,
    "rev_mvit": mvit.REVERSIBLE,
}

# A key that only files of this kind have, for the message about a wrong file.
FOREIGN = ((r"^s1\.pathway1_stem\.|^t_conv1_w$", "a two-pathway SlowFast"),)


def recognise(name: str, keys: Iterable[str]) -> Naming:
    """The naming of a file for the model `name`, from the keys of its tensors.

    Raises:
      UserError: these are no weights of that model; the message says what they look
        like.

    >>> recognise("slow_r50", ["conv1_w", "res_conv1_bn_riv", "res5_2_branch2c_w",
    ...                        "pred_w"]).name
    'caffe2'
    """
    entry, found = zoo.entry(name), set(keys)
    foreign = _foreign(found)
    for naming in NAMINGS[entry.family]:
        if not foreign and naming.name in entry.namings and naming.matches(found):
            return naming
    known = " or ".join(entry.namings) or "no published source"
    raise UserError(
        f"these are not weights of {name} as named by {known}; {_looks(found)}"
    )


def candidates(keys: Iterable[str]) -> list[tuple[str, Naming]]:
    """The models whose published weights have such keys, and the naming of each.

    Raises:
      UserError: there are none; the message says what the keys look like.

    >>> [name for name, _ in candidates(["blocks.0.conv.conv_t.weight",
    ...     "blocks.5.pool.post_conv.weight", "x.norm_b.1.block.0.weight"])]
    ['x3d_xs', 'x3d_s', 'x3d_m', 'x3d_l']
    """
    found = set(keys)
    models = [] if _foreign(found) else _models_with(found)
    if not models:
        raise UserError(f"these are weights of no model of the zoo; {_looks(found)}")
    return models


def siblings(name: str, naming: Naming) -> list[str]:
    """The other models whose published weights are named alike."""
    family = zoo.entry(name).family
    return [
        other
        for other in zoo.names()
        if other != name
        and zoo.entry(other).family == family
        and naming.name in zoo.entry(other).namings
    ]


def _models_with(keys: set[str]) -> list[tuple[str, Naming]]:
    return [
        (name, naming)
        for name in zoo.names()
        for naming in NAMINGS[zoo.entry(name).family]
        if naming.name in zoo.entry(name).namings and naming.matches(keys)
    ]


def _foreign(keys: set[str]) -> str:
    return next((w for k, w in FOREIGN if any(re.search(k, key) for key in keys)), "")


def _looks(keys: set[str]) -> str:
    models = dict.fromkeys(name for name, _ in _models_with(keys))
    looks = _foreign(keys) or " or ".join(models)
    if looks:
        return f"they look like {looks}"
    return f"found {', '.join(sorted(keys)[:3])}, …"
