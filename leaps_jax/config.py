"""The settings of a synthesis, and presets of them for each method."""

import dataclasses
import math

from leaps_jax.errors import UserError, nearest

#: Fields of `Config` that must be at least 1.
_AT_LEAST_ONE = (
    "steps",
    "steps_per_call",
    "octaves",
    "octave_scale",
    "views",
    "priming_cells",
)
#: Fields of `Config` that must not be negative.
_NOT_NEGATIVE = (
    "learning_rate",
    "warmup",
    "epsilon",
    "weight_decay",
    "margin",
    "roll",
    "temporal_roll",
    "view_scale",
    "view_shift",
    "view_noise",
    "view_tint",
    "view_tempo",
    "view_delay",
    "blur",
    "temporal_blur",
    "noise",
)
#: The most that fields of `Config` may be: what is more overflows, or never ends.
_AT_MOST = {
    **dict.fromkeys(("steps", "steps_per_call", "warmup"), 10**9),
    **dict.fromkeys(("roll", "view_shift", "view_delay"), 1),  # shares
    **dict.fromkeys(("view_scale", "view_tempo"), 10),  # powers of e
    **dict.fromkeys(("blur", "temporal_blur", "octave_scale", "views"), 1000),
    "octaves": 100,
    "priming_cells": 2**12,
    "temporal_roll": 2**16,
}
_LARGEST = 1e30  # of any other number; float32 ends at 3.4e38


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of a synthesis.

    Weights follow L = CE + priming · L_prim + priming_per_step · L_step +
    regularization · (coherence · R_coh + diversity · R_feat) + l2 · ‖x‖² +
    spatial_tv · TV_s + temporal_tv · TV_t. The defaults are those of LEAPS over the
    Fourier parametrization; `preset` has those of others.

    Attributes:
      steps: optimisation steps.
      seed: of every random draw (with the index of the video and the step).
      parametrization: what is optimised, a name of `PARAMETRIZATIONS`.
      spatial_decay: of the Fourier parametrization: larger for smoother shapes.
      temporal_decay: likewise: larger for slower videos, negative for faster ones.
      learning_rate: peak, in units of the parameters.
      final_learning_rate: at the end of the cosine.
      warmup: steps of linear warm-up; at most a tenth of `steps` is used.
      beta1, beta2, epsilon: Adam's; gradients are those of a sum over pixels.
      weight_decay: pulls parameters to zero, which is grey: what no loss holds fades.
      priming, priming_per_step, regularization, coherence: weights of the terms.
      diversity, l2, spatial_tv, temporal_tv: likewise.
      priming_cells: priming per step compares the means over each cell of a grid of so
        many by so many; 1 for the means over whole frames.
      margin: δ of the coherence term, in units of the tapped feature.
      views: random views of each video in a step, whose losses are averaged.
      view_scale: each step sees the video enlarged by a factor of e^-view_scale to
        e^view_scale,
      view_shift: shifted by up to this share of its height and width,
      view_noise: under noise of this standard deviation, in pixels of [0, 1],
      view_tint: under a colour of this standard deviation,
      view_tempo: with time stretched by a factor of e^-view_tempo to e^view_tempo,
      view_delay: and shifted by up to this share of its frames.
      roll: largest cyclic shift, as a fraction of the frame size.
      temporal_roll: largest shift in frames, 0 for none.
      flip: mirror half of the videos at each step; leave off for classes that a
        mirror changes.
      blur: standard deviation in pixels by which gradients are smoothed over height and
        width, 0 for not at all; large shapes then grow before fine texture does.
      temporal_blur: likewise over time, in frames.
      noise: standard deviation of the noise to start from.
      init: start from "noise" or from the "stimulus".
      octaves: scales that the run goes through, coarse to fine; 1 for the frame alone.
      octave_scale: from one octave to the next.
      steps_per_call: steps run on the device between two looks at it.
    """

    steps: int = 200
    seed: int = 0
    parametrization: str = "fourier"
    spatial_decay: float = 1.25
    temporal_decay: float = 0.0
    learning_rate: float = 0.1
    final_learning_rate: float = 1e-2
    warmup: int = 20
    beta1: float = 0.85
    beta2: float = 0.95
    epsilon: float = 0.3
    weight_decay: float = 0.3
    priming: float = 2.0
    priming_per_step: float = 5.0
    priming_cells: int = 4
    regularization: float = 1.0
    coherence: float = 0.5
    diversity: float = 0.5
    margin: float = 0.1
    l2: float = 0.0
    spatial_tv: float = 2.0
    temporal_tv: float = 0.0
    views: int = 1
    view_scale: float = 0.25
    view_shift: float = 0.12
    view_noise: float = 0.08
    view_tint: float = 0.05
    view_tempo: float = 0.0
    view_delay: float = 0.0
    roll: float = 0.0
    temporal_roll: int = 0
    flip: bool = False
    blur: float = 0.0
    temporal_blur: float = 0.0
    noise: float = 0.01
    init: str = "noise"
    octaves: int = 1
    octave_scale: float = 1.4
    steps_per_call: int = 50

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool | str):
                continue
            most = _AT_MOST.get(field.name, _LARGEST)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{field.name}={value}: must be a finite number")
            if abs(value) > most:
                raise UserError(f"{field.name}={value}: must be at most {most:g}")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must not be negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be in [0, 1)")
        if not 0 <= self.seed < 2**32:  # more bits than a key of JAX has
            raise UserError(f"seed={self.seed}: must be from 0 to {2**32 - 1}")
        if self.init not in ("noise", "stimulus"):
            raise UserError(f"init={self.init!r}: must be noise or stimulus")
        if self.octaves > self.steps:
            raise UserError(f"octaves={self.octaves}: more than the {self.steps} steps")

    def updated(self, assignments: list[str]) -> "Config":
        """A copy with `key=value` texts applied, each parsed by its field's type.

        >>> Config().updated(["margin=0.5", "flip=true"]).margin
        0.5
        """
        types = {f.name: f.type for f in dataclasses.fields(self)}
        changes: dict[str, int | float | bool | str] = {}
        for text in assignments:
            key, equals, value = text.partition("=")
            if not equals:
                raise UserError(f"set={text!r}: write key=value")
            if key not in types:
                raise UserError(f"set={text!r}: no such key; {nearest(key, types)}")
            changes[key] = _parse(text, value, types[key])
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


#: Settings of each method that differ from `Config`'s defaults.
METHOD_PRESETS: dict[str, dict[str, int | float | str]] = {
    "leaps": {},
    "activation_maximization": {},
    "deep_dream": {
        "init": "stimulus",
        "octaves": 3,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
    },
    "deep_inversion": {},
}

#: Settings of each parametrization and method that differ from those.
PRESETS: dict[str, dict[str, dict[str, int | float | str]]] = {
    "fourier": {},
    "pixels": {
        "": {
            "steps": 400,
            "learning_rate": 0.1,
            "final_learning_rate": 5e-3,
            "warmup": 100,
            "beta1": 0.5,
            "beta2": 0.9,
            "epsilon": 1e-2,
            "weight_decay": 0.0,
            "noise": 0.1,
            "blur": 2.5,
            "temporal_blur": 1.0,
            "spatial_tv": 2.0,
            "temporal_tv": 2.0,
        },
        "activation_maximization": {"l2": 0.1, "spatial_tv": 1.0, "temporal_tv": 0.1},
        "deep_dream": {"steps": 200, "learning_rate": 0.05, "spatial_tv": 0.1},
        "deep_inversion": {"l2": 0.01, "spatial_tv": 0.1},
    },
}


def preset(
    method: str = "leaps",
    parametrization: str = Config.parametrization,
    **changes: int | float | str,
) -> Config:
    """The recorded settings of a method over a parametrization.

    Args:
      method: a name of `objectives.METHODS`.
      parametrization: a name of `parametrizations.PARAMETRIZATIONS`.
      **changes: fields of `Config` to set.

    >>> preset("leaps", "pixels", steps=500).learning_rate
    0.1
    """
    own = PRESETS.get(parametrization, {})
    settings = METHOD_PRESETS.get(method, {}) | own.get("", {}) | own.get(method, {})
    settings = settings | {"parametrization": parametrization} | changes
    return Config(**settings)  # type: ignore[arg-type]


def _parse(text: str, value: str, kind: object) -> int | float | bool | str:
    if kind is str:
        return value
    if kind is bool:
        known = {"true": True, "1": True, "yes": True}
        known |= {"false": False, "0": False, "no": False}
        if value.lower() not in known:
            raise UserError(f"set={text!r}: write true or false")
        return known[value.lower()]
    try:
        return int(value) if kind is int else float(value)
    except ValueError:
        word = "a whole number" if kind is int else "a number"
        raise UserError(f"set={text!r}: {value!r} is not {word}") from None
