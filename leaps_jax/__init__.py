"""leaps_jax: see what a video model has learnt.

import leaps_jax as lj

model = lj.load_model("x3d_xs@weights")
stimuli = lj.load_stimuli(["clip.mp4"], model.spec)
result = lj.synthesize(model, stimuli, labels=["jack"])
result.videos  # (1, t, h, w, 3) in [0, 1]
"""

import os as _os

# XLA's Triton GEMM fusion aborts the process on some products of a folded
# (batch x time) reshape (JAX 0.11.2, H200); a value that is set stays.
if "xla_gpu_enable_triton_gemm" not in _os.environ.get("XLA_FLAGS", ""):
    _flags = _os.environ.get("XLA_FLAGS", "")
    _os.environ["XLA_FLAGS"] = f"{_flags} --xla_gpu_enable_triton_gemm=false".strip()

from leaps_jax import evaluation, objectives, parametrizations, transforms  # noqa: E402
from leaps_jax.config import Config, preset  # noqa: E402
from leaps_jax.data.stimuli import load_stimuli  # noqa: E402
from leaps_jax.errors import UserError  # noqa: E402
from leaps_jax.model import Model, ModelSpec  # noqa: E402
from leaps_jax.parametrizations import Parametrization  # noqa: E402
from leaps_jax.runtime.executable_cache import ExecutableCache  # noqa: E402
from leaps_jax.synthesis import Result, synthesize  # noqa: E402
from leaps_jax.taps import estimate_moments, features, predict  # noqa: E402
from leaps_jax.zoo.build import names as list_models  # noqa: E402
from leaps_jax.zoo.load import convert, load_model  # noqa: E402

__version__ = "0.1.0"

Programs = ExecutableCache  # its former name

__all__ = [
    "Config",
    "ExecutableCache",
    "Model",
    "ModelSpec",
    "Parametrization",
    "Programs",
    "Result",
    "UserError",
    "convert",
    "evaluation",
    "estimate_moments",
    "features",
    "list_models",
    "load_model",
    "load_stimuli",
    "objectives",
    "parametrizations",
    "predict",
    "preset",
    "synthesize",
    "transforms",
]
