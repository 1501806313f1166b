"""UniFormerV2 against its equations, and what its global blocks can and cannot see."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import rule
from parity import apply, filled, keys_and_shapes

from leaps_jax.zoo import build as zoo
from leaps_jax.zoo.conversion import namings, rules

# three blocks, a global one after the last two; 3 x 3 patches
FIELDS = {"width": 12, "heads": 3, "patch": 4, "depth": 3, "global_depth": 2}
CLASSES = tuple("abcde")


def small_source() -> dict[str, np.ndarray]:
    """Tensors of such a network under their published names, by the rule."""
    small = {768: 12, 2304: 36, 3072: 48, 197: 10, 16: 4, 400: 5}
    absent = r"resblocks\.([3-9]|1\d)\.|(dpe|dec)\.[23]\."
    return filled(
        {
            key: tuple(small.get(n, n) for n in shape)
            for key, shape in keys_and_shapes("uniformerv2_b_16_8").items()
            if not re.search(absent, key)
        }
    )


def small_network(source, **options):
    module, _ = zoo.build("uniformer_v2_b", CLASSES, size=12, **FIELDS, **options)
    naming = namings.recognise("uniformer_v2_b", source)
    return module, rules.convert_tensors(source, naming, zoo.variable_shapes(module))


# ---- the equations, on the published tensors in float64


def normed(w, name, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(w, name, x, context, heads=3):
    """One head after another of (n, c) to (m, c)."""
    c = x.shape[-1]
    rows, bias = w[f"{name}.in_proj_weight"], w[f"{name}.in_proj_bias"]
    out = []
    for head in np.split(np.arange(c), heads):
        q, k, v = (
            y @ rows[i * c + head].T + bias[i * c + head]
            for i, y in enumerate((x, context, context))
        )
        scores = np.exp(q @ k.T / np.sqrt(len(head)))
        out.append(scores / scores.sum(-1, keepdims=True) @ v)
    out = np.concatenate(out, axis=-1)
    return out @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"]


def mlp(w, name, x):
    x = x @ w[f"{name}.c_fc.weight"].T + w[f"{name}.c_fc.bias"]
    x = x / (1 + np.exp(-1.702 * x))
    return x @ w[f"{name}.c_proj.weight"].T + w[f"{name}.c_proj.bias"]


def positioned(w, name, x):
    """Tokens (t, 10, c) plus a depthwise convolution of their 3 x 3 patches."""
    kernel, t = w[f"{name}.weight"][:, 0], len(x)  # c 3 3 3
    padded = np.zeros((t + 2, 5, 5, x.shape[-1]))
    padded[1:-1, 1:-1, 1:-1] = x[:, 1:].reshape(t, 3, 3, -1)
    x = x.copy()
    for at in np.ndindex(t, 3, 3):
        window = padded[tuple(slice(i, i + 3) for i in at)]
        moved = np.einsum("ijkc,cijk->c", window, kernel) + w[f"{name}.bias"]
        x[at[0], 1 + 3 * at[1] + at[2]] += moved
    return x


def reference(source, video):
    w = {k.removeprefix("backbone."): v.astype(np.float64) for k, v in source.items()}
    t = len(video)
    cut = video.reshape(t, 3, 4, 3, 4, 3)
    x = np.einsum("tihjwc,dchw->tijd", cut, w["conv1.weight"][:, :, 0])
    x = x.reshape(t, 9, -1)
    x = np.concatenate([np.tile(w["class_embedding"], (t, 1, 1)), x], axis=1)
    x = normed(w, "ln_pre", x + w["positional_embedding"])
    summary = w["transformer.temporal_cls_token"][0]
    for i in range(3):
        name = f"transformer.resblocks.{i}"
        y = normed(w, f"{name}.ln_1", x)
        x = x + np.stack([attention(w, f"{name}.attn", z, z) for z in y])
        x = x + mlp(w, f"{name}.mlp", normed(w, f"{name}.ln_2", x))
        if i >= 1:
            name = f"transformer.dec.{i - 1}"
            context = positioned(w, f"transformer.dpe.{i - 1}", x)
            context = normed(w, f"{name}.ln_3", context).reshape(t * 10, -1)
            query = normed(w, f"{name}.ln_1", summary)
            summary = summary + attention(w, f"{name}.attn", query, context)
            summary += mlp(w, f"{name}.mlp", normed(w, f"{name}.ln_2", summary))
    share = 1 / (1 + np.exp(-w["transformer.balance"]))
    z = (1 - share) * summary[0] + share * x[:, 0].mean(0)
    z = normed(w, "transformer.proj.0", z)
    return z @ w["transformer.proj.2.weight"].T + w["transformer.proj.2.bias"]


@pytest.mark.parametrize("frames", [1, 3])
def test_the_network_is_its_equations(frames):
    source, video = small_source(), rule.video(frames, 12, 1)
    for key in ("conv1.weight", "class_embedding", "positional_embedding"):
        source[f"backbone.{key}"] *= 0.01  # small enough for the ε of norms to count
    module, variables = small_network(source)
    wanted = reference(source, video[0].astype(np.float64))
    got = jax.jit(module.apply)(variables, video)
    np.testing.assert_allclose(got[0], wanted, atol=1e-5 * wanted.std())


# ---- what a global block sees


def test_without_positions_in_time_the_frames_are_a_set():
    source = small_source()
    module, _ = small_network(source)
    video = rule.video(4, 12, 1)
    forms = [video, video[:, [2, 0, 3, 1]], np.repeat(video, 3, axis=1)]
    run = jax.jit(lambda variables: [module.apply(variables, form) for form in forms])

    def logits(source):
        return run(small_network(source)[1])

    one, permuted, repeated = logits(source)
    assert np.abs(one - permuted).max() > 1e-3
    assert np.abs(one - repeated).max() > 1e-3
    for key in source:
        if re.search(r"\.dpe\.\d\.weight$", key):
            source[key][:, :, [0, 2]] = 0.0
    one, permuted, repeated = logits(source)
    np.testing.assert_allclose(one, permuted, atol=1e-5)
    np.testing.assert_allclose(one, repeated, atol=1e-5)


def test_positions_stay_in_their_global_block():
    source, video = small_source(), rule.video(2, 12, 1)
    module, before = small_network(source)
    key = "backbone.transformer.dpe.0.bias"
    source[key] = source[key] + 1.0
    _, after = small_network(source)
    run = jax.jit(lambda v: {k: t.value for k, t in apply(module, v, video)[1].items()})
    one, other = run(before), run(after)
    changed = {name for name in one if not np.array_equal(one[name], other[name])}
    assert changed == {
        "global0/norm",
        "global0/mlp_norm",
        "global1/summary_norm",
        "global1/mlp_norm",
        "norm",
    }
    moved = other["global0/norm"] - one["global0/norm"]
    np.testing.assert_array_equal(moved[:, :, 0], 0.0)  # the class tokens
    np.testing.assert_allclose(moved[:, :, 1:], 1.0, rtol=1e-5)


def test_where_time_is():
    module, variables = small_network(small_source())

    def check(variables):
        _, found = apply(module, variables, rule.video(2, 12, 1))
        for name, tap in found.items():
            if name == "norm" or re.search("summary_norm|global./mlp_norm", name):
                assert tap.time_axis is None
            else:
                assert tap.by_time().shape == (1, 2, 10, 12)

    jax.eval_shape(check, variables)


# ---- options


@pytest.mark.parametrize(
    ("theirs", "ours", "depth"), [("resblocks", "block", 3), ("dec", "global", 2)]
)
def test_key_biases_are_in_their_rows(theirs, ours, depth):
    # they add one number to all attention logits of a query: no output shows them
    source = small_source()
    params = small_network(source)[1]["params"]
    for i in range(depth):
        bias = source[f"backbone.transformer.{theirs}.{i}.attn.in_proj_bias"]
        converted = params[f"{ours}{i}"]["attention"]["qkv"]["bias"]
        np.testing.assert_array_equal(converted, bias)


def test_no_weight_depends_on_the_number_of_frames():
    eight, sixteen = (zoo.build(f"uniformer_v2_l{n}", CLASSES)[0] for n in ("", "_16f"))
    assert eight.clone(frames=16) == sixteen
    assert zoo.variable_shapes(eight) == zoo.variable_shapes(sixteen)


def test_patches_must_divide_the_size():
    module, _ = zoo.build("uniformer_v2_l", CLASSES, size=100, depth=1)
    video = jax.ShapeDtypeStruct((1, 2, 100, 100, 3), jnp.float32)
    with pytest.raises(ValueError, match="size=100.*multiple of 14") as error:
        jax.eval_shape(module.init, jax.random.key(0), video)
    assert "\n" not in str(error.value)
