"""Every family under LEAPS, at the smallest clips that it takes."""

import dataclasses
import functools
import json

import checks
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from leaps_jax import Config, Model, synthesize, taps
from leaps_jax.cli.main import main
from leaps_jax.kernels import depthwise, dispatch
from leaps_jax.model import norm_inputs
from leaps_jax.runs import results
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading

ONE_EACH = {"depths": (1, 1, 1, 1)}
NARROW = ONE_EACH | {"inner": (8, 8, 16, 16), "stem_features": 8}
NARROW_18 = ONE_EACH | {"features": (8, 8, 16, 16)}
# model -> fields that leave few blocks of it, frames and size; the first of a family
# stands for it
SMALLEST = {
    "slow_r50": (ONE_EACH, 4, 32),
    "r2plus1d_r50": (NARROW, 8, 64),
    "csn_r50": (NARROW, 8, 64),
    "slow_r50_small": ({"depths": (2, 1, 1, 1)}, 4, 64),
    "r2plus1d_18": (ONE_EACH, 4, 32),
    "r3d_18": (NARROW_18, 8, 32),
    "mc3_18": (NARROW_18, 8, 32),
    "x3d_xs": ({"depths": (1, 1, 2, 1)}, 4, 32),
    "x3d_xs_small": ({"depths": (2, 1, 1, 1)}, 4, 64),
    "timesformer": ({"depth": 2}, 4, 16),
    "timesformer_small": ({"depth": 2}, 4, 64),
    "vivit_b_16x2": ({"depth": 2}, 4, 16),
    "vivit_small": ({"depth": 2}, 4, 64),
    "swin3d_t": ({"depths": (2, 1, 1, 1)}, 4, 32),
    "mvit_v1_b": ({"depths": (1, 1, 1)}, 4, 16),
    "mvit_v2_s": ({"depths": (1, 1, 1)}, 4, 16),
    "rev_mvit_b": ({"depths": (1, 1, 1)}, 4, 16),
    "uniformer_v2_b": ({"depth": 2}, 4, 64),
}
FAMILIES: dict[str, str] = {}
for _name in SMALLEST:
    FAMILIES.setdefault(zoo.entry(_name).family, _name)
# Their published weights take no smaller clips than those that they are made for.
FIXED = ("resnet", "x3d", "uniformerv2")
CLASSES = tuple("abcde")


def test_every_family_and_every_small_model_is_here():
    assert list(FAMILIES) == list(dict.fromkeys(r["family"] for r in zoo.table()))
    assert SMALLEST.keys() >= {n for n in zoo.names() if n.endswith("_small")}


@functools.cache
def smallest(name: str) -> Model:
    """A network with random weights, none of which is zero."""
    fields, frames, size = SMALLEST[name]
    module, spec = zoo.build(name, CLASSES, frames=frames, size=size, **fields)
    rng = np.random.default_rng(0)

    def tensor(path, leaf):
        if path[-1].key == "kernel":
            values = rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        else:
            values = rng.uniform(-0.2, 0.2, leaf.shape)
        return np.float32(values + (path[-1].key in ("scale", "var")))

    variables = jax.tree.map_with_path(tensor, zoo.variable_shapes(module))
    return Model(module, variables, spec)


def clips(name: str) -> jax.Array:
    _, frames, size = SMALLEST[name]
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(2, frames, size, size, 3)), jnp.float32)


@functools.cache
def observed(name: str) -> checks.Observed:
    """What the network is everywhere but on a GPU."""
    return checks.observe(smallest(name).module, smallest(name).variables, clips(name))


# Those that compile longest; mvit_v2_s has the same attention.
LATER = {"mvit_v1_b", "rev_mvit_b"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.heavy] * (n in LATER)) for n in SMALLEST],
)
def test_gradients_recomputed_blocks_and_bfloat16(name):
    network = (smallest(name).module, smallest(name).variables, clips(name))
    plain = observed(name)
    assert plain.logits.shape == (2, 5)
    checks.assert_gradient_reaches_every_frame(plain.gradient, 1e-3)
    checks.assert_recomputing_changes_nothing(*network, plain)
    checks.assert_bfloat16_is_close(*network, plain)


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
def test_weights_of_numpy_can_be_constants_of_a_program(name):
    """As `convert` gives them, in a function of the user's that closes over them."""
    model = smallest(name)
    logits = jax.eval_shape(
        lambda videos: model.module.apply(model.variables, videos), clips(name)
    )
    assert logits.shape == (2, 5)


# of ViViT two: three tokens are too few for those that its attention fills up
@pytest.mark.parametrize("name", [*FAMILIES.values(), "vivit_small"])
def test_forms_of_a_gpu_are_the_same_network(request, monkeypatch, name):
    network = (smallest(name).module, smallest(name).variables, clips(name))
    plain = observed(name)
    request.getfixturevalue("on_a_gpu")
    # interpreting the kernel takes minutes, and test_convolutions does
    monkeypatch.setattr(depthwise, "fused", depthwise.shifted_products)
    there = checks.observe(*network)
    assert there.jaxpr != plain.jaxpr
    checks.assert_same(there, plain, 1e-4)


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
def test_a_gpu_older_than_ampere_is_given_no_kernel(on_a_gpu, monkeypatch, name):
    """Triton and cuDNN's attention refuse a T4: compiling for one would fail."""
    model = smallest(name)

    def step(variables, videos):
        def loss(videos):
            found = taps.apply(model.module, variables, videos, model.tap_filter)
            logits, tapped = found
            return logits.sum() + sum(tap.mean().sum() for tap in tapped.values())

        return jax.grad(loss)(videos)

    arguments = model.variables, clips(name)
    assert "pallas_call" in str(jax.make_jaxpr(step)(*arguments))
    monkeypatch.setattr(dispatch, "compute_capability", lambda: 7.5)
    monkeypatch.setattr(jax.nn, "dot_product_attention", None)
    jax.clear_caches()
    assert "pallas_call" not in str(jax.make_jaxpr(step)(*arguments))


@pytest.mark.parametrize("name", ["x3d_xs", "slow_r50", "timesformer"])
def test_norms_of_a_gpu_know_the_moments_of_their_taps(on_a_gpu, monkeypatch, name):
    monkeypatch.setattr(depthwise, "fused", depthwise.shifted_products)
    network = smallest(name)

    @jax.jit
    def moments(variables, videos):
        _, found = taps.apply(network.module, variables, videos, norm_inputs)
        assert all(tap.known for tap in found.values())
        told = list(found.values())
        seen = [dataclasses.replace(tap, known=()) for tap in told]
        about = [jnp.full(tap.value.shape[-1], 0.1) for tap in told]
        return [
            [(tap.mean(), *tap.moments(at)) for tap, at in zip(of, about, strict=True)]
            for of in (told, seen)
        ]

    told, seen = moments(network.variables, clips(name))
    for a, b in zip(jax.tree.leaves(told), jax.tree.leaves(seen), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
def test_leaps_inverts_it_with_an_x3d_verifier(name):
    model = smallest(name)
    still = dict(view_scale=0.0, view_shift=0.0, view_noise=0.0, view_tint=0.0)
    config = Config(steps=20, steps_per_call=20, **still)
    stimuli = np.random.default_rng(2).random(clips(name).shape, np.float32)
    result = synthesize(
        model,
        stimuli,
        ["b", "d"],
        smallest("x3d_xs"),
        config,
        devices=jax.devices()[:1],
    )
    assert {"priming", "diversity", "coherence"} <= result.weights.keys()
    total = result.metrics["total"]
    assert np.isfinite(total).all()
    assert (total[-1] < total[0]).all()
    assert (total[-5:].mean(0) < total[:5].mean(0)).all()


@pytest.mark.usefixtures("forget_compiled")
@pytest.mark.heavy
@pytest.mark.parametrize("family", FAMILIES)
def test_convert_then_synthesize(family, tmp_path, capsys):
    """A file under published names, at full size, to a run: the user's way."""
    save = pytest.importorskip("safetensors.numpy").save_file
    name = FAMILIES[family]
    _, frames, size = SMALLEST[name]
    if family in FIXED:
        frames, size = zoo.entry(name).frames, zoo.entry(name).size
    golden = next(g for g, (n, _) in parity.NETWORKS.items() if n == name)
    save(parity.weights(golden), tmp_path / "published.safetensors")
    weights = tmp_path / "weights"
    words = ["convert", name, str(tmp_path / "published.safetensors"), str(weights)]
    assert main(words) == 0, capsys.readouterr().err
    assert len(loading.load_model(f"{name}@{weights}").spec.classes) == 400

    clip = np.random.default_rng(0).random((frames, size, size, 3), np.float32)
    np.save(tmp_path / "clip.npy", clip)
    words = ["synthesize", "--model", f"{name}@{weights}", "--label", "juggling balls"]
    words += ["--stimulus", str(tmp_path / "clip.npy"), "--out", str(tmp_path / "run")]
    words += ["--frames", str(frames), "--size", str(size), "--stride", "1"]
    words += ["--steps", "3", "--set", "steps_per_call=1", "--preview-every", "0"]
    assert main(words) == 0, capsys.readouterr().err
    made = results.read(tmp_path / "run")
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
