r"""Turns tensors under published names into Flax variables; knows no model.

A `Naming` is a literal list of substitutions that rewrites a published key into a path
of ours plus a leaf name of torch, `stem.norm.running_mean`; the mechanics here place
the leaf in its collection and transpose its layout. Conversion is strict: every source
key is used or ignored for a stated reason, every leaf of ours is filled, and shapes
agree.

>>> naming = Naming("toy", rules=((r"^fc\.", "classifier."),))
>>> target_path(naming, "fc.weight")
'classifier'
"""

import dataclasses
import itertools
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from leaps_jax.errors import UserError, listed
from leaps_jax.zoo.checkpoints import check_values

Rules = tuple[tuple[str, str], ...]
Path = tuple[str, ...]

# Leaf of torch -> where Flax may keep it. running_var is a variance in both.
LEAVES: dict[str, tuple[tuple[str, str], ...]] = {
    "weight": (("params", "kernel"), ("params", "scale")),
    "bias": (("params", "bias"),),
    "running_mean": (("batch_stats", "mean"),),
    "running_var": (("batch_stats", "var"),),
}

# Layouts of kernels by their number of axes: (torch, ours, the transpose).
LAYOUTS: dict[int, tuple[str, str, tuple[int, ...]]] = {
    5: ("OIDHW", "DHWIO", (2, 3, 4, 1, 0)),  # grouped and depthwise ones too
    4: ("OIHW", "HWIO", (2, 3, 1, 0)),
    2: ("OI", "IO", (1, 0)),
}

# Of every batch norm of torch.
BATCH_COUNTER: Rules = (
    (r"\.num_batches_tracked$", "counts training steps; inference does not use it"),
)


@dataclasses.dataclass(frozen=True)
class Naming:
    """How one source names the tensors of one family.

    Attributes:
      name: of the source, "pytorchvideo" for example.
      rules: (regular expression, replacement) pairs, all applied in order with
        `re.sub`; the result is `our.path.leaf`, or `our.path` for a bare parameter.
      ignored: (regular expression, reason) of keys that have no counterpart.
      marks: regular expressions that each match some key of a file of this naming.
      absent: regular expressions that match no key of such a file.
      overrides: fields that the module must have for these weights.
      stacked: (fragments of keys, a fragment in their place): the tensors under the
        former are one of ours, along its outputs and in this order.
      of_flax: tensors are in Flax's layouts, not in torch's.
    """

    name: str
    rules: Rules
    ignored: Rules = ()
    marks: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    overrides: tuple[tuple[str, Any], ...] = ()
    stacked: tuple[tuple[str, ...], str] | None = None
    of_flax: bool = False

    def matches(self, keys: set[str]) -> bool:
        """Whether a file with these keys is of this naming."""
        present = all(any(re.search(m, key) for key in keys) for m in self.marks)
        return present and not any(re.search(a, k) for a in self.absent for k in keys)


def target_path(naming: Naming, key: str) -> str:
    """The path of our module, or bare parameter, that a published key belongs to."""
    path, _ = _split(naming, key)
    return "/".join(path)


def head_shape(
    tensors: Mapping[str, np.ndarray], naming: Naming, path: str
) -> tuple[int, ...] | None:
    """The published shape of `path`'s weight, outputs first; None if there is none."""
    for key, value in tensors.items():
        if _split(naming, key) == (tuple(path.split("/")), "weight"):
            return value.shape[::-1] if naming.of_flax else value.shape
    return None


def convert_tensors(
    source: Mapping[str, np.ndarray], naming: Naming, target_shapes: Mapping[str, Any]
) -> dict[str, Any]:
    """Flax variables from published tensors.

    Args:
      source: tensors by published key, in torch's layouts or, if the naming says so,
        in Flax's.
      naming: how the source names them.
      target_shapes: the variables as a tree of shapes, from `jax.eval_shape` of the
        module's `init`.

    Returns:
      The variables: `{"params": ..., "batch_stats": ...}`, float32 NumPy arrays.

    Raises:
      UserError: anything is missing, left over, given twice or of another shape, or has
        values that no trained weights have; one line lists all of it.
    """
    placed = place(source, naming, target_shapes)
    try:
        check_values({"/".join(leaf): value for leaf, value in placed.items()})
    except UserError as error:
        raise UserError(f"{error}; give trained weights") from None
    return flax.traverse_util.unflatten_dict(
        {
            leaf: np.ascontiguousarray(value, dtype=np.float32)
            for leaf, value in placed.items()
        }
    )


def place(
    source: Mapping[str, np.ndarray], naming: Naming, target_shapes: Mapping[str, Any]
) -> dict[Path, np.ndarray]:
    """The tensors by the path of our leaf, in its shape.

    They are views of the source's, whatever their type; only what `stack` joins is
    copied. Arguments and faults are those of `convert_tensors`.
    """
    wanted: dict[Path, Any] = flax.traverse_util.flatten_dict(target_shapes)
    placed: dict[Path, np.ndarray] = {}
    used: dict[Path, str] = {}
    unknown, twice, misshaped = [], [], []
    for key, tensor in stack(source, naming).items():
        if any(re.search(pattern, key) for pattern, _ in naming.ignored):
            continue
        leaf = _leaf(naming, key, wanted)
        if leaf is None:
            unknown.append(key)
            continue
        if leaf in used:
            twice.append(f"{key} and {used[leaf]}")
            continue
        used[leaf] = key
        shape = tuple(wanted[leaf].shape)
        if naming.of_flax:
            value = merge_axes(tensor, shape)
        else:
            value = to_layout(tensor, leaf[-1], len(shape))
        if value.shape != shape:
            misshaped.append(f"{key} {tensor.shape} for {'/'.join(leaf[1:])} {shape}")
            continue
        placed[leaf] = value
    missing = ["/".join(leaf) for leaf in wanted if leaf not in used]
    faults = [
        listed("tensors missing", missing),
        listed("tensors unknown", unknown),
        listed("tensors of another shape", misshaped),
        listed("tensors given twice", twice),
    ]
    if any(faults):
        raise UserError(
            f"{naming.name} weights do not fit: " + "; ".join(f for f in faults if f)
        )
    return placed


def stack(source: Mapping[str, np.ndarray], naming: Naming) -> Mapping[str, np.ndarray]:
    """Joins the tensors that the source keeps apart and our module together.

    >>> naming = Naming("toy", rules=(), stacked=((".q.", ".k."), ".qk."))
    >>> stack({"a.q.bias": np.zeros(3), "a.k.bias": np.ones(3)}, naming)["a.qk.bias"]
    array([0., 0., 0., 1., 1., 1.])
    """
    if naming.stacked is None:
        return source
    fragments, whole = naming.stacked
    joined = dict(source)
    for key in source:
        if fragments[0] in key:
            parts = [key.replace(fragments[0], fragment) for fragment in fragments]
            if len({np.shape(source.get(part, ())) for part in parts}) == 1:
                tensors = [joined.pop(part) for part in parts]
                joined[key.replace(fragments[0], whole)] = np.concatenate(tensors)
    return joined


def to_layout(tensor: np.ndarray, leaf: str, ndim: int) -> np.ndarray:
    """Transposes a kernel from torch's layout to Flax's.

    Trailing axes of length 1 are dropped or added first: a 1x1x1 convolution may be a
    matrix here, and Caffe2 stores some convolutions without their last axes. Other
    tensors lose leading axes of length 1: most sources give a class token and position
    embeddings an axis for the batch.

    >>> to_layout(np.zeros((4, 3, 1, 7, 7)), "kernel", 5).shape
    (1, 7, 7, 3, 4)
    >>> to_layout(np.zeros((4, 3, 1, 1, 1)), "kernel", 2).shape
    (3, 4)
    """
    if leaf != "kernel":
        while tensor.ndim > ndim and tensor.shape[0] == 1:
            tensor = tensor[0]
        return tensor
    while tensor.ndim > ndim and tensor.shape[-1] == 1:
        tensor = tensor[..., 0]
    while 2 <= tensor.ndim < ndim:
        tensor = tensor[..., None]
    if tensor.ndim != ndim or ndim not in LAYOUTS:
        return tensor
    return tensor.transpose(LAYOUTS[ndim][2])


def merge_axes(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Merges neighbouring axes if that gives `shape`; else the tensor stays.

    Flax's attention keeps heads and their channels apart.

    >>> merge_axes(np.zeros((8, 2, 4)), (8, 8)).shape
    (8, 8)
    >>> merge_axes(np.zeros((4, 2)), (2, 4)).shape
    (4, 2)
    """
    ends = set(itertools.accumulate(shape, operator.mul))
    if tensor.size == math.prod(shape) and ends <= set(
        itertools.accumulate(tensor.shape, operator.mul)
    ):
        return tensor.reshape(shape)
    return tensor


def _split(naming: Naming, key: str) -> tuple[Path, str]:
    for pattern, replacement in naming.rules:
        key = re.sub(pattern, replacement, key)
    head, dot, last = key.rpartition(".")
    if dot and last in LEAVES:
        return tuple(head.split(".")), last
    return tuple(key.split(".")), ""


def _leaf(naming: Naming, key: str, wanted: Mapping[Path, Any]) -> Path | None:
    path, last = _split(naming, key)
    candidates = [(c, *path, leaf) for c, leaf in LEAVES.get(last, ())]
    candidates = candidates or [("params", *path)]
    return next((c for c in candidates if c in wanted), None)
