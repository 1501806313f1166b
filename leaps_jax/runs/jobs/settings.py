"""The settings that all rows of a run share."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp

from leaps_jax import objectives
from leaps_jax import video as video_lib
from leaps_jax.config import Config
from leaps_jax.errors import UserError, check_known
from leaps_jax.runs.jobs.table import Survey
from leaps_jax.zoo import load as loading


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that all rows of a run share; see `leaps-jax synthesize --help`."""

    method: str
    config: Config
    frames: int | None = None
    size: int | None = None
    stride: int | None = None
    short: str = "refuse"
    dtype: str | None = None
    remat: bool = False
    data_dir: str | None = None

    def check(self) -> None:
        """Raises UserError for what would fail in every row."""
        check_known("method", self.method, objectives.METHODS)
        loading.compute_type(self.dtype)
        video_lib.sample_frames(1, 1, 1, short=self.short)
        for name, value in self.clip().items():
            if value < 1:
                raise UserError(f"{name}={value}: must be at least 1")

    def clip(self) -> dict[str, Any]:
        """The given numbers that replace those of a model's spec."""
        given = {name: getattr(self, name) for name in ("frames", "size", "stride")}
        return {name: value for name, value in given.items() if value is not None}

    def identity(self, survey: Survey, batch: int) -> dict[str, Any]:
        """All that identifies a run, flat, as JSON would give it back."""
        flat = dataclasses.asdict(self)
        for name in ("remat", "data_dir"):
            del flat[name]
        flat |= flat.pop("config") | {"table": survey.digest}
        dtype = loading.compute_type(self.dtype)  # by default, the machine's choice
        flat["dtype"] = "float32" if dtype is None else jnp.dtype(dtype).name
        del flat["seed"]  # every row has its own
        if survey.verifiers:  # the moments are those of a batch
            flat["batch"] = batch
        return json.loads(json.dumps(flat))
