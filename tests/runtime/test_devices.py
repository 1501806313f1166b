"""One, two and eight devices give the same videos, also where they do not divide.

Eight CPU devices must be asked for before JAX starts, hence the process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from leaps_jax.runtime import parallel

TESTS = Path(__file__).parent.parent

SCRIPT = """
import sys
import jax, numpy as np
from conftest import make_tiny
from leaps_jax import Config, Model, objectives, synthesize
from leaps_jax.zoo import build as zoo

tiny, verifier = make_tiny(0), make_tiny(1)
rng = np.random.default_rng(0)
config = Config(steps=20, steps_per_call=10)
assert jax.device_count() == 8
out = {}

def run(name, model, stimuli, verifier):
    labels = [i % 5 for i in range(len(stimuli))]
    for count in (1, 2, 8):
        devices = jax.devices()[:count]
        result = synthesize(model, stimuli, labels, verifier, config, devices=devices)
        assert "diversity" in result.weights
        out[f"{name}/{count}"] = result.videos
        out[f"{name}/{count}/diversity"] = result.metrics["diversity"]

run("even", tiny, rng.random((8, 4, 32, 32, 3), np.float32), verifier)
looking = objectives.channel(-1, 3) + objectives.neuron(1, 2) + objectives.contrast()
for count in (1, 2, 8):
    result = synthesize(
        tiny, None, [0, 1, 2], verifier, config, looking, jax.devices()[:count]
    )
    out[f"microscopes/{count}"] = result.videos
run("odd", tiny, rng.random((5, 4, 32, 32, 3), np.float32), verifier)
# matrices as small as upstream initialises them: sharper ones magnify rounding errors
module, spec = zoo.build(
    "timesformer_small", tiny.spec.classes, frames=4, size=28, patch=14, stem=()
)
variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 4, 28, 28, 3)))
small = jax.tree.map(
    lambda x: x * min(1.0, 0.02 / x.std()) if x.ndim == 2 else x, variables
)
transformer = Model(module, small, spec)
run("transformer", transformer, rng.random((3, 4, 28, 28, 3), np.float32), verifier)
np.savez(sys.argv[1], **out)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("devices") / "runs.npz"
    environment = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(out)], env=environment, check=True
    )
    return dict(np.load(out))


@pytest.mark.parametrize("name", ["even", "odd", "transformer", "microscopes"])
@pytest.mark.parametrize("count", [2, 8])
def test_number_of_devices_changes_nothing(runs, name, count):
    one, many = runs[f"{name}/1"], runs[f"{name}/{count}"]
    assert np.abs(one - many).max() < 1e-4


@pytest.mark.parametrize("name", ["even", "odd", "transformer"])
def test_batch_moments_are_global(runs, name):
    """Every video of every device reports one value, that of the single device."""
    one, eight = runs[f"{name}/1/diversity"], runs[f"{name}/8/diversity"]
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    assert np.ptp(eight, axis=1).max() < 1e-5 * eight.max()


def test_one_gpu_exchanges_with_itself(monkeypatch):
    """For XLA's schedule; the mean stays the mean."""
    values, weight = np.arange(12.0).reshape(1, 4, 3), np.array([[1.0, 1.0, 1.0, 0.0]])

    def mean(values, weight):
        return parallel.batch_mean(weight)(values)

    def mapped():
        # a new function each time, which nothing is cached for
        return parallel.map_over_devices(
            lambda *args: mean(*args), jax.devices()[:1], in_axes=0, out_axes=0
        )

    assert "ppermute" not in str(jax.make_jaxpr(mapped())(values, weight))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "ppermute" in str(jax.make_jaxpr(mapped())(values, weight))
    np.testing.assert_allclose(mapped()(values, weight)[0], values[0, :3].mean(0))
