"""Video Swin: its windows against their definition, and its names."""

import re

import checks
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from leaps_jax import taps
from leaps_jax.errors import UserError
from leaps_jax.kernels import attention
from leaps_jax.model import norm_inputs
from leaps_jax.models.swin import PatchMerging, WindowAttention, relative_positions
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading
from leaps_jax.zoo.conversion import namings, rules

# windows of 2 x 3 x 3 tokens; the second block's are shifted where several fit
FEW = {"depths": (2, 1), "width": 24, "heads": (2, 3), "window": (2, 3, 3)}


def small(frames, size):
    """A network of two stages, its tensors all of a size that matters, and a clip."""
    module, _ = zoo.build("swin3d_t", tuple("abc"), frames=frames, size=size, **FEW)
    rng = np.random.default_rng(0)

    def tensor(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return noise / np.sqrt(np.prod(leaf.shape[:-1]))
        return 1 + 0.2 * noise if path[-1].key == "scale" else 0.5 * noise

    variables = jax.tree.map_with_path(tensor, zoo.variable_shapes(module))
    clip = rng.normal(size=(1, frames, size, size, 3)).astype(np.float32)
    return module, variables, clip


# ---- windows


def defined_attention(params, x, heads, window, shift):
    """Attention of every token to those of its window and side, in NumPy.

    Nothing is rolled: a window that shifting wraps around an edge holds tokens of both
    sides, which do not see each other.
    """
    *size, c = x.shape
    window = np.array(window)
    single = np.array(size) <= window
    window, shift = np.where(single, size, window), np.where(single, 0, shift)
    padded = -(-np.array(size) // window) * window
    x = np.pad(x, [*((0, p - n) for p, n in zip(padded, size, strict=True)), (0, 0)])

    at = np.stack(np.indices(padded), -1).reshape(-1, 3)
    place = np.concatenate([(at - shift) % padded // window, at < shift], axis=1)
    together = (place[:, None] == place[None]).all(-1)  # n m
    offset = at[:, None] - at[None] + window - 1
    table = params["relative_position_bias"]
    table = table.reshape(*(2 * window - 1), heads)
    bias = table[tuple(np.where(together[..., None], offset, 0).transpose(2, 0, 1))]

    dense = params["qkv"]
    qkv = x.reshape(-1, c) @ dense["kernel"] + dense["bias"]
    q, k, v = qkv.reshape(-1, 3, heads, c // heads).transpose(1, 2, 0, 3)  # heads n d
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(c // heads) + bias.transpose(2, 0, 1)
    scores = np.where(together, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights = scores / scores.sum(-1, keepdims=True)
    out = (weights @ v).transpose(1, 0, 2).reshape(-1, c)
    out = out @ params["proj"]["kernel"] + params["proj"]["bias"]
    t, h, w = size
    return out.reshape(*padded, c)[:t, :h, :w]


@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 1, 2)])
@pytest.mark.parametrize(
    "size",
    [
        (4, 6, 9),  # whole windows
        (5, 7, 8),  # padded along every axis
        (2, 7, 6),  # one window in time: no shift there
        (4, 3, 4),  # one in height
    ],
)
def test_windows_are_what_is_defined(size, shift):
    layer = WindowAttention(heads=2, window=(2, 3, 3), shift=shift)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, *size, 8)).astype(np.float32)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.7, leaf.shape).astype(np.float32),
        jax.eval_shape(layer.init, jax.random.key(0), x)["params"],
    )
    got = layer.apply({"params": params}, x)
    wanted = defined_attention(params, x[0], 2, (2, 3, 3), shift)
    np.testing.assert_allclose(got[0], wanted, rtol=1e-4, atol=1e-4)


def test_offsets_count_rows_of_the_published_table():
    index = relative_positions((8, 7, 7))
    assert index.shape == (392, 392)
    assert index[0, 0] == index[391, 391] == (7 * 13 + 6) * 13 + 6
    query, key = (3 * 7 + 1) * 7 + 6, (5 * 7 + 4) * 7 + 2  # (3, 1, 6) and (5, 4, 2)
    assert index[query, key] == ((-2 + 7) * 13 + (-3 + 6)) * 13 + (4 + 6)
    assert index.min() == 0 and index.max() == 15 * 13 * 13 - 1


def test_a_window_cut_to_the_features_takes_the_first_rows_and_columns():
    # of 3 x 3 tokens, numbered along rows, the bias of the first four
    rows = [[12, 11, 10, 7], [13, 12, 11, 8], [14, 13, 12, 9], [17, 16, 15, 12]]
    layer = WindowAttention(heads=1, window=(1, 3, 3), shift=(0, 1, 1))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 2, 2, 4)))
    params = layer.init(jax.random.key(0), x)["params"]
    table = np.random.default_rng(1).normal(size=(25, 1))
    params["qkv"]["kernel"] = np.eye(4, 12, 8)  # values are tokens, scores are biases
    params["proj"]["kernel"] = np.eye(4)
    params["relative_position_bias"] = table
    weights = np.exp(table[rows, 0])
    wanted = weights / weights.sum(-1, keepdims=True) @ x.reshape(4, 4)
    got = layer.apply({"params": params}, x)
    np.testing.assert_allclose(got.reshape(4, 4), wanted, rtol=1e-5, atol=1e-6)


def test_patches_are_merged_along_columns():
    x = jnp.arange(1.0, 7).reshape(1, 1, 3, 2, 1)  # rows 1 2, 3 4, 5 6
    (_, found) = PatchMerging().init_with_output(
        jax.random.key(0), x, capture_intermediates=norm_inputs
    )
    merged = found["intermediates"]["norm"]["observe"][0]
    np.testing.assert_array_equal(
        merged, [[[[[1, 3, 2, 4]], [[5, 0, 6, 0]]]]]
    )  # b t h w c


# ---- the network


def test_any_clip_is_taken():
    module, variables, _ = small(16, 32)
    for shape in [(1, 1, 1), (1, 4, 4), (3, 50, 18), (33, 5, 40)]:
        video = jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32)
        assert jax.eval_shape(module.apply, variables, video).shape == (1, 3)


def test_what_is_missing_of_a_patch_is_zero():
    module, variables, clip = small(8, 32)
    filled = clip.copy()
    filled[:, 7:], filled[:, :, 29:], filled[:, :, :, 30:] = 0, 0, 0
    run = jax.jit(module.apply)
    odd = run(variables, clip[:, :7, :29, :30])
    np.testing.assert_allclose(odd, run(variables, filled), rtol=1e-5, atol=1e-5)
    assert np.abs(odd - run(variables, clip)).max() > 1e-2


def test_taps_keep_time_and_space_apart():
    module, variables, clip = small(7, 32)
    found, epsilons = {}, set()

    def inputs(layer, method):
        if norm_inputs(layer, method):
            epsilons.add(layer.epsilon)
        return norm_inputs(layer, method)

    def run(variables, video):
        found.update(taps.apply(module, variables, video, inputs)[1])

    jax.eval_shape(run, variables, clip)
    assert list(found) == [
        "patch_norm",
        *(f"stage1/block{i}/{norm}" for i in (0, 1) for norm in ("norm", "mlp_norm")),
        "merging1/norm",
        "stage2/block0/norm",
        "stage2/block0/mlp_norm",
        "norm",
    ]
    assert found["patch_norm"].value.shape == (1, 4, 8, 8, 24)
    assert found["merging1/norm"].value.shape == (1, 4, 4, 4, 96)
    assert found["norm"].value.shape == (1, 4, 4, 4, 48)
    assert {(t.time_axis, t.time_steps) for t in found.values()} == {(1, None)}
    assert epsilons == {1e-5}  # 1e-6 is too close for the golden data to tell


def test_training_drops_out_and_reaches_every_weight():
    module, variables, clip = small(6, 24)

    def loss(params, key):
        rngs = {"dropout": jax.random.key(key)}
        return module.apply({"params": params}, clip, train=True, rngs=rngs).sum()

    step = jax.jit(jax.value_and_grad(loss))
    (one, gradient), (two, _) = (step(variables["params"], key) for key in (0, 1))
    assert one != two
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6, path


def jaxpr_of(module, variables, clip) -> str:
    return str(jax.make_jaxpr(module.apply)(variables, clip))


def test_gradient_reaches_every_pixel_and_recomputing_changes_nothing():
    network = small(7, 30)  # frames and patches are padded
    plain = checks.observe(*network)
    checks.assert_gradient_reaches_every_frame(plain.gradient, 1e-2)
    assert (np.abs(plain.gradient).max((1, 4)) > 0).all()
    checks.assert_recomputing_changes_nothing(*network, plain)
    module, *given = network
    count = [
        jaxpr_of(m, *given).count("= remat") for m in (module.clone(remat=True), module)
    ]
    assert count[0] - count[1] == 3  # blocks


def test_bfloat16_is_close_and_products_are_in_it(monkeypatch):
    monkeypatch.setattr(attention, "HALF", ())  # the definition, without the kernel
    network = small(16, 32)
    checks.assert_bfloat16_is_close(*network, checks.observe(*network))
    module, *given = network
    jaxpr = jaxpr_of(module.clone(dtype=jnp.bfloat16), *given)
    products = re.findall(r":(\w+)\[[^]]*\] = dot_general", jaxpr)
    scores = 3  # of each block, summed in float32
    assert products.count("f32") == scores + 1  # and the classifier
    assert products.count("bf16") == len(products) - scores - 1 == 1 + 1 + 3 * 7


# ---- names


def renamed(source, *pairs):
    """Keys with each text replaced by another, written down apart from our tables."""
    out = {}
    for key, value in source.items():
        for old, new in pairs:
            key = key.replace(old, new)
        out[key] = value
    assert len(out) == len(source)
    return out


OFFICIAL_TO_TORCHVISION = (
    ("backbone.", ""),
    ("cls_head.fc_cls", "head"),
    ("layers.0.blocks", "features.0"),
    ("layers.0.downsample", "features.1"),
    ("layers.1.blocks", "features.2"),
    ("layers.1.downsample", "features.3"),
    ("layers.2.blocks", "features.4"),
    ("layers.2.downsample", "features.5"),
    ("layers.3.blocks", "features.6"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.3"),
)


@pytest.mark.parametrize(
    ("naming", "pairs"),
    [
        ("mmaction2", [("backbone.norm.", "backbone.norm3.")]),
        ("torchvision", OFFICIAL_TO_TORCHVISION),
    ],
)
def test_names_of_other_sources_give_the_same_weights(naming, pairs):
    official = parity.weights("swin_official_t")
    other = renamed(official, *pairs)
    if naming == "torchvision":
        assert other.keys() == parity.keys_and_shapes("torchvision_swin3d_t").keys()
    assert namings.recognise("swin3d_t", official).name == "official"
    assert namings.recognise("swin3d_t", other).name == naming
    ours = loading.convert("swin3d_t", official).variables
    theirs = loading.convert("swin3d_t", other).variables
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("golden", ["swin_official_t", "torchvision_swin3d_t"])
def test_key_biases_are_in_their_rows(golden):
    # they add one number to all attention logits of a query: no output shows them
    source = parity.weights(golden)
    params = loading.convert("swin3d_t", source).variables["params"]
    naming = namings.recognise("swin3d_t", source)
    biases = [k for k in source if k.endswith("qkv.bias")]
    assert len(biases) == 12
    for key in biases:
        stage, block, *_ = rules.target_path(naming, key).split("/")
        ours = params[stage][block]["attention"]["qkv"]["bias"]
        c = len(ours) // 3
        np.testing.assert_array_equal(ours[c : 2 * c], source[key][c : 2 * c])


def test_one_swin_for_another():
    shapes = parity.keys_and_shapes("torchvision_swin3d_s")
    source = {k: np.zeros(s, np.float32) for k, s in shapes.items()}
    with pytest.raises(
        UserError, match="these are weights of swin3d_s, not of swin3d_b"
    ):
        loading.convert("swin3d_b", source)
