"""Clips, tables and tiny networks for the tests of jobs."""

from pathlib import Path

import jax
import numpy as np
import pytest
from job_tables import write
from tiny import make_tiny

from leaps_jax import UserError, update
from leaps_jax.zoo import load as loading
from leaps_jax.zoo import references


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Keeps compiled steps from test to test and for other processes."""
    kept = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in kept}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in kept.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def models(monkeypatch):
    """`tiny@0` and so on are tiny networks; counts how often a step is traced."""
    made, traced = {}, []

    def load(reference, **_):
        name, _, seed = reference.partition("@")
        if name != "tiny":
            raise UserError(f"model={reference!r}: unknown; write tiny@0")
        return made.setdefault(seed, make_tiny(int(seed)))

    make = update.make_update_step

    def counting(setup, *rest):
        step = make(setup, *rest)

        def counted(*of):
            traced.append(setup.model)
            return step(*of)

        return counted

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(references, "fingerprint", lambda reference: reference)
    monkeypatch.setattr(update, "make_update_step", counting)
    return traced


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(4):
        frames = np.random.default_rng(i).integers(0, 255, (8, 32, 40, 3), np.uint8)
        np.savez(folder / f"{i}.npz", video=frames)
    return folder


@pytest.fixture
def table(tmp_path, clips):
    """Seven rows, eleven videos."""
    rows = [
        {"model": "tiny@0", "stimulus": clips / f"{i % 4}.npz", "label": i % 5}
        for i in range(7)
    ]
    rows[1] |= {"copies": 4, "seed": 7}
    rows[4] |= {"copies": 2}
    return write(tmp_path / "jobs.csv", rows)
