"""Every family under LEAPS, at the smallest clips that it takes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from leaps_jax import Config, Model, cli, loading, runs, synthesize, taps, zoo

# family -> one of its models, fields that leave few blocks of it, frames and size
SMALLEST = {
    "resnet": ("slow_r50", {"depths": (1, 1, 1, 1)}, 4, 32),
    "resnet18": ("r2plus1d_18", {"depths": (1, 1, 1, 1)}, 4, 32),
    "x3d": ("x3d_xs", {"depths": (1, 1, 2, 1)}, 4, 32),
    "timesformer": ("timesformer", {"depth": 2}, 4, 16),
    "vivit": ("vivit_b_16x2", {"depth": 2}, 4, 16),
    "swin": ("swin3d_t", {"depths": (2, 1, 1, 1)}, 4, 32),
    "mvit": ("mvit_v1_b", {"depths": (1, 1, 1)}, 4, 16),
    "mvitv2": ("mvit_v2_s", {"depths": (1, 1, 1)}, 4, 16),
    "rev_mvit": ("rev_mvit_b", {"depths": (1, 1, 1)}, 4, 16),
    "uniformerv2": ("uniformer_v2_b", {"depth": 2}, 4, 16),
}
# Their published weights take no smaller clips than those that they are made for.
FIXED = ("resnet", "x3d", "uniformerv2")
CLASSES = tuple("abcde")


def test_every_family_is_here():
    assert list(SMALLEST) == list(dict.fromkeys(r["family"] for r in zoo.table()))


@functools.cache
def smallest(family: str) -> Model:
    """A network with random weights, no scale of which is zero."""
    name, fields, frames, size = SMALLEST[family]
    module, spec = zoo.build(name, CLASSES, frames=frames, size=size, **fields)
    rng = np.random.default_rng(0)
    variables = jax.jit(module.init)(jax.random.key(0), clips(family)[:1])
    variables = jax.tree.map(
        lambda leaf: (
            leaf + rng.uniform(0, 0.2, leaf.shape).astype(np.float32)
            if leaf.ndim == 1
            else leaf
        ),
        variables,
    )
    return Model(module, variables, spec)


def clips(family: str) -> jax.Array:
    _, _, frames, size = SMALLEST[family]
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(2, frames, size, size, 3)), jnp.float32)


@pytest.mark.parametrize("family", SMALLEST)
def test_gradients_reach_every_frame_and_bfloat16_is_close(family):
    model, videos = smallest(family), clips(family)
    half = model.module.clone(dtype=jnp.bfloat16)

    @jax.jit
    def run(variables, x):
        def score(x):
            logits, found = taps.apply(model.module, variables, x, taps.norm_inputs)
            assert {tap.value.shape[0] for tap in found.values()} == {len(videos)}
            return logits[:, 1].sum(), logits

        (_, logits), gradient = jax.value_and_grad(score, has_aux=True)(x)
        return logits, half.apply(variables, x), gradient

    logits, rounded, gradient = jax.device_get(run(model.variables, videos))
    assert logits.shape == (2, 5) and logits.dtype == rounded.dtype == np.float32
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max((2, 3, 4)) > 0).all()
    assert np.linalg.norm(rounded - logits) < 0.05 * np.linalg.norm(logits)


@pytest.mark.parametrize("family", SMALLEST)
def test_leaps_inverts_it_with_an_x3d_verifier(family):
    model = smallest(family)
    config = Config(steps=20, steps_per_call=20, roll=0.0)
    stimuli = np.random.default_rng(2).random(clips(family).shape, np.float32)
    result = synthesize(
        model, stimuli, ["b", "d"], smallest("x3d"), config, devices=jax.devices()[:1]
    )
    assert {"priming", "diversity", "coherence"} <= result.weights.keys()
    total = result.metrics["total"]
    assert np.isfinite(total).all()
    assert (total[-1] < total[0]).all()
    assert (total[-5:].mean(0) < total[:5].mean(0)).all()


@pytest.mark.heavy
@pytest.mark.parametrize("family", SMALLEST)
def test_convert_then_synthesize(family, tmp_path, capsys):
    """A file under published names, at full size, to a run: the user's way."""
    save = pytest.importorskip("safetensors.numpy").save_file
    name, _, frames, size = SMALLEST[family]
    if family in FIXED:
        frames, size = zoo.entry(name).frames, zoo.entry(name).size
    golden = next(g for g, (n, _) in parity.NETWORKS.items() if n == name)
    save(parity.weights(golden), tmp_path / "published.safetensors")
    weights = tmp_path / "weights"
    words = ["convert", name, str(tmp_path / "published.safetensors"), str(weights)]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert len(loading.load_model(f"{name}@{weights}").spec.classes) == 400

    clip = np.random.default_rng(0).random((frames, size, size, 3), np.float32)
    np.save(tmp_path / "clip.npy", clip)
    words = ["synthesize", "--model", f"{name}@{weights}", "--label", "juggling balls"]
    words += ["--stimulus", str(tmp_path / "clip.npy"), "--out", str(tmp_path / "run")]
    words += ["--frames", str(frames), "--size", str(size), "--stride", "1"]
    words += ["--steps", "3", "--set", "steps_per_call=1", "--preview-every", "0"]
    assert cli.main(words) == 0, capsys.readouterr().err
    made = runs.results(tmp_path / "run")
    assert made["classes"] == ["juggling balls"]
    assert made["videos"].shape == (1, frames, size, size, 3)
    assert np.ptp(made["videos"]) > 0.1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [line["step"] for line in metrics] == [1, 2, 3]  # one a call
    gradients = np.array([line["gradient"] for line in metrics])
    assert np.isfinite(gradients).all() and (gradients > 0).all()
