"""A model: a network, its weights, and the facts that its users need.

>>> spec = ModelSpec("mine", frames=8, size=64, classes=("run", "walk"))
>>> model = Model(module, variables, spec)                      # doctest: +SKIP
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from leaps_jax.errors import UserError, nearest
from leaps_jax.models.layers import NormLayer

#: Chooses taps, as Flax's `capture_intermediates` does: `(module, method) -> bool`.
Filter = Callable[[nn.Module, str], bool]
#: The mean and the variance per channel, each (c,), by the name of the tap.
Moments = Mapping[str, tuple[jax.Array, jax.Array]]


def norm_inputs(module: nn.Module, method: str) -> bool:
    """The filter of LEAPS: the inputs of this package's norm layers."""
    return isinstance(module, NormLayer) and method == "observe"


#: Of one clip: what is larger fills any memory, whatever a file or an argument says.
MOST_FRAMES, MOST_SIZE, MOST_PIXELS = 2**16, 2**12, 2**28
MOST_CLASSES = 2**20
FPS = 30  # frames a second of a source, in which a model's stride counts


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The facts of a video classifier: its clips, classes and normalisation.

    Attributes:
      name: the zoo's name, or any name for a model of your own.
      frames: frames of one input clip.
      size: height and width of one input clip, in pixels.
      classes: class names in the order of the logits.
      stride: source frames from one sampled frame to the next.
      mean: per RGB channel, of pixels in [0, 1].
      std: likewise; the network sees `(pixels - mean) / std`.
      licence: of the weights.
      source: where the weights came from.

    >>> ModelSpec("mine", frames=8, size=64, classes=("run", "walk")).num_classes
    2
    """

    name: str
    frames: int
    size: int
    classes: tuple[str, ...]
    stride: int = 1
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    licence: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        most = {"frames": MOST_FRAMES, "size": MOST_SIZE, "stride": MOST_FRAMES}
        for field, limit in most.items():
            value = getattr(self, field)
            if value < 1:
                raise UserError(f"{field}={value}: must be at least 1")
            if value > limit:
                raise UserError(f"{field}={value}: must be at most {limit}")
        if self.frames * self.size**2 > MOST_PIXELS:
            what = f"a clip may have {MOST_PIXELS} pixels in all; lower one of them"
            raise UserError(f"frames={self.frames} size={self.size}: {what}")
        for field in ("classes", "mean", "std"):  # JSON brings lists
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for name in self.classes:
            if not _is_unicode(name):
                raise UserError(f"class {name!r}: is not UTF-8; rename it")
            if not name.isprintable():
                what = "has unprintable characters; rename it"
                raise UserError(f"class {name!r}: {what}")
        if not all(math.isfinite(value) for value in self.mean):
            raise UserError(f"mean={self.mean}: must be finite")
        if not all(0 < value < math.inf for value in self.std):
            raise UserError(f"std={self.std}: must be above 0 and finite")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def window(self) -> int:
        """Source frames that one clip spans."""
        return (self.frames - 1) * self.stride + 1

    @property
    def fps(self) -> float:
        """Frames a second at which one input clip plays in real time."""
        return FPS / self.stride

    def label_index(self, label: int | str) -> int:
        """The index of a class given by name or by index.

        Raises:
          UserError: the model has no such class; the nearest names are offered.
        """
        text = str(label)
        if text in self.classes:
            return self.classes.index(text)
        if re.fullmatch(r"-?\d{1,9}", text):
            if 0 <= int(text) < self.num_classes:
                return int(text)
            raise UserError(
                f"label={text}: {self.name} has classes 0 to"
                f" {self.num_classes - 1}; give one of them"
            )
        hint = nearest(text, self.classes)
        raise UserError(f"label={text!r}: not a class of {self.name}; {hint}")


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
        return True
    except UnicodeEncodeError:  # the bytes of a folder's name, as Python has them
        return False


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A frozen video classifier.

    >>> Model(module, variables, spec)                          # doctest: +SKIP
    Model(mine: 2 classes, 8 frames x 64 px, 1,234,567 parameters)

    Attributes:
      module: a Linen module, `(b, t, h, w, 3) normalised video -> (b, classes) logits`.
      variables: its variables, as `module.init` returns them.
      spec: its facts.
      tap_filter: a Flax filter `(module, method) -> bool` that chooses the taps.
      moments: per tap the mean and variance per channel over natural clips; needed
        to verify with a model that has no batch norm (see `estimate_moments`).
    """

    module: nn.Module
    variables: Mapping[str, Any]
    spec: ModelSpec
    tap_filter: Filter = norm_inputs
    moments: Moments | None = None

    def __repr__(self) -> str:
        spec, weights = self.spec, self.variables.get("params", {})
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
        return (
            f"Model({spec.name}: {spec.num_classes} classes, {spec.frames} frames x"
            f" {spec.size} px, {count:,} parameters)"
        )
