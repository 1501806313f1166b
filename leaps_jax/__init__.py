"""leaps_jax: see what a video model has learnt.

import leaps_jax as lj

model = lj.load_model("x3d_xs@weights")
stimuli = lj.load_stimuli(["clip.mp4"], model.spec)
result = lj.synthesize(model, stimuli, labels=["jack"])
result.videos  # (1, t, h, w, 3) in [0, 1]
result.save("jack")  # arrays, mp4 files and a page

On a GPU, set XLA_FLAGS=--xla_gpu_enable_triton_gemm=false before JAX starts, as the
command `leaps-jax` does: XLA's Triton GEMM fusion can abort the process.
"""

from leaps_jax import evaluation, objectives, parametrizations, render, transforms
from leaps_jax.attributions import attribution, overlay
from leaps_jax.config import Config, preset
from leaps_jax.data.clips import load_stimuli
from leaps_jax.errors import UserError
from leaps_jax.model import Model, ModelSpec
from leaps_jax.parametrizations import Parametrization
from leaps_jax.result import Result
from leaps_jax.runtime.engine import NotFiniteError
from leaps_jax.runtime.executable_cache import ExecutableCache
from leaps_jax.synthesis import Problem, Progress, iterate, prepare, synthesize
from leaps_jax.taps import (
    Tap,
    estimate_moments,
    features,
    predict,
    tap_names,
    tap_shapes,
)
from leaps_jax.terms import Context, Objective
from leaps_jax.version import __version__ as __version__
from leaps_jax.zoo.build import names as list_models
from leaps_jax.zoo.load import convert, load_model

Programs = ExecutableCache  # its former name

__all__ = [
    "Config",
    "Context",
    "ExecutableCache",
    "Model",
    "ModelSpec",
    "NotFiniteError",
    "Objective",
    "Parametrization",
    "Problem",
    "Programs",
    "Progress",
    "Result",
    "Tap",
    "UserError",
    "attribution",
    "convert",
    "evaluation",
    "estimate_moments",
    "features",
    "iterate",
    "list_models",
    "load_model",
    "load_stimuli",
    "objectives",
    "overlay",
    "parametrizations",
    "predict",
    "prepare",
    "preset",
    "render",
    "synthesize",
    "tap_names",
    "tap_shapes",
    "transforms",
]
