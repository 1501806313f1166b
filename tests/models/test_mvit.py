"""MViT, MViTv2 and the reversible MViT: their parts against their definitions."""

import functools
import math
import re
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import NETWORKS, weights

from leaps_jax import taps
from leaps_jax.errors import UserError
from leaps_jax.model import norm_inputs
from leaps_jax.models import multiscale, rev_mvit
from leaps_jax.models.layers import LayerNorm, Mlp
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading
from leaps_jax.zoo.conversion import namings, rules

NAMES = ("mvit_v1_b", "mvit_v2_s", "rev_mvit_b")
RNG = np.random.default_rng(0)


def filled(shapes, spread: float = 0.3):
    """Variables of these shapes, none of them zero, scales of norms around one."""
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        around = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(around, spread, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def small(name: str, frames: int = 8, size: int = 32):
    """Three stages, one of two blocks, of narrow tokens."""
    fields = {"depths": (1, 2, 1), "width": 8}
    module, _ = zoo.build(name, tuple("abc"), frames=frames, size=size, **fields)
    return module, filled(zoo.variable_shapes(module))


def interpolated(table: np.ndarray, length: int) -> np.ndarray:
    """Along the first axis, from centres of cells to centres of cells."""
    at = (np.arange(length) + 0.5) * len(table) / length - 0.5
    columns = table.reshape(len(table), -1).T
    rows = [np.interp(at, np.arange(len(table)), column) for column in columns]
    return np.stack(rows, 1).reshape(length, *table.shape[1:])


# ---- the parts


@pytest.mark.parametrize("shape", [(1, 6, 16, 24, 3), (2, 5, 9, 14, 3)])
def test_patches_are_those_of_a_convolution(shape):
    ours = multiscale.patch_embedding(6, None)
    padding = [(1, 1), (3, 3), (3, 3)]
    theirs = nn.Conv(6, multiscale.PATCH, multiscale.PATCH_STRIDE, padding)
    video = RNG.normal(size=shape).astype(np.float32)
    variables = filled(jax.eval_shape(theirs.init, jax.random.key(0), video))
    one, other = (m.apply(variables, video) for m in (ours, theirs))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def pool(x, params, grid, stride, class_tokens):
    """(n, heads, c) and the new grid: every head by the same kernel, then the norm."""
    kernel = params["conv"]["kernel"][:, :, :, 0]
    video = x[class_tokens:].reshape(*grid, *x.shape[1:])
    video = np.pad(video, [(1, 1)] * 3 + [(0, 0)] * 2)
    t, h, w = grid
    rows = [
        np.einsum("ijkhc,ijkc->hc", video[a : a + 3, b : b + 3, c : c + 3], kernel)
        for a in range(t)
        for b in range(0, h, stride)
        for c in range(0, w, stride)
    ]
    x = np.concatenate([x[:class_tokens], rows])
    return layer_norm(x, params["norm"]), (
        t,
        math.ceil(h / stride),
        math.ceil(w / stride),
    )


def relative_scores(q, params, queries, keys, tables):
    """(heads, n, m) by the definition, a pair of places at a time."""
    names = ("time", "height", "width")
    found = []
    for axis, name in enumerate(names):
        assert len(params[name]) == 2 * tables[axis] - 1
        length = 2 * max(queries[axis], keys[axis]) - 1
        found.append(interpolated(params[name], length))
    scores = np.zeros((q.shape[1], len(q), math.prod(keys)))
    for i, query in enumerate(np.ndindex(*queries)):
        for j, key in enumerate(np.ndindex(*keys)):
            for table, a, b, n, m in zip(found, query, key, queries, keys, strict=True):
                up, down = max(Fraction(m, n), 1), max(Fraction(n, m), 1)
                row = math.floor(a * up - b * down + (m - 1) * down)
                scores[:, i, j] += q[i] @ table[row]
    return scores


@pytest.mark.parametrize("class_tokens", [0, 1])
@pytest.mark.parametrize(
    ("grid", "table_grid", "query_stride", "key_stride"),
    [
        ((2, 4, 6), (2, 4, 6), 1, 2),
        ((2, 6, 4), (3, 5, 5), 2, 1),  # finer keys, resized tables
        ((3, 7, 6), (3, 7, 6), 1, 4),  # 7 queries on 2 keys
        ((2, 7, 5), (2, 7, 5), 2, 1),  # 4 queries on 7 keys
    ],
)
def test_pooling_attention(grid, table_grid, query_stride, key_stride, class_tokens):
    layer = multiscale.PoolingAttention(
        heads=2,
        head_width=4,
        grid=grid,
        query_stride=query_stride,
        key_stride=key_stride,
        table_grid=table_grid,
        residual=True,
        class_tokens=class_tokens,
    )
    x = RNG.normal(size=(1, class_tokens + math.prod(grid), 8)).astype(np.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    variables = filled(shapes)
    params = jax.tree.map(np.float64, variables["params"])

    dense = params["qkv"]
    q, k, v = np.split(x[0] @ dense["kernel"] + dense["bias"], 3, axis=-1)
    q, k, v = (z.reshape(-1, 2, 4) for z in (q, k, v))
    q, queries = pool(q, params["pool_q"], grid, query_stride, class_tokens)
    k, keys = pool(k, params["pool_k"], grid, key_stride, class_tokens)
    v, _ = pool(v, params["pool_v"], grid, key_stride, class_tokens)
    scores = np.einsum("nhc,mhc->hnm", q, k) / 2
    tables = [
        max(-(-n // a), -(-n // b))
        for n, a, b in zip(
            table_grid,
            (1, query_stride, query_stride),
            (1, key_stride, key_stride),
            strict=True,
        )
    ]
    scores[:, class_tokens:, class_tokens:] += relative_scores(
        q[class_tokens:], params["relative_position"], queries, keys, tables
    )
    attention = np.exp(scores - scores.max(-1, keepdims=True))
    attention /= attention.sum(-1, keepdims=True)
    wanted = np.einsum("hnm,mhc->nhc", attention, v)
    wanted[class_tokens:] += q[class_tokens:]
    dense = params["proj"]
    wanted = wanted.reshape(-1, 8) @ dense["kernel"] + dense["bias"]

    with jax.default_matmul_precision("highest"):
        got = jax.jit(layer.apply)(variables, x)[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_streams_can_be_had_back():
    attention = functools.partial(
        multiscale.PoolingAttention,
        heads=2,
        head_width=4,
        grid=(2, 4, 4),
        query_stride=None,
        key_stride=2,
        class_tokens=0,
    )
    block = rev_mvit.ReversibleBlock(attention, steps=2)
    a, b = RNG.normal(size=(2, 1, 32, 8)).astype(np.float32)
    variables = filled(jax.eval_shape(block.init, jax.random.key(0), a, b))
    params = variables["params"]
    new_a, new_b = jax.jit(block.apply)(variables, a, b)
    assert np.abs(new_a - a).max() > 0.1 and np.abs(new_b - b).max() > 0.1

    def part(layer, name, x):
        return layer.apply({"params": params[name]}, x)

    old_b = new_b - part(Mlp(32), "mlp", part(LayerNorm(), "mlp_norm", new_a))
    normed = part(LayerNorm(), "norm", old_b)
    old_a = new_a - part(attention(), "attention", normed)
    np.testing.assert_allclose(old_b, b, atol=1e-4)
    np.testing.assert_allclose(old_a, a, atol=1e-4)


# ---- the networks


@pytest.mark.parametrize("name", ["mvit_v1_b", "rev_mvit_b"])
def test_embeddings_of_positions_are_resized_linearly(name):
    large, variables = small(name)
    module, _ = small(name, 12, 16)
    params = dict(variables["params"])
    space = params["position"]["space"].reshape(8, 8, 8)
    for _ in range(2):
        space = interpolated(space, 4).swapaxes(0, 1)
    params["position"] = {
        "space": space.reshape(16, 8).astype(np.float32),
        "time": interpolated(params["position"]["time"], 6).astype(np.float32),
    }
    clip = RNG.normal(size=(1, 12, 16, 16, 3)).astype(np.float32)
    one = jax.jit(large.apply)(variables, clip)
    other = jax.jit(module.apply)({"params": params}, clip)
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_for_training(name):
    module, variables = small(name, 2, 16)
    module = module.clone(dropout=0.5)
    clip = RNG.normal(size=(1, 2, 16, 16, 3)).astype(np.float32)
    run = jax.jit(
        lambda key: module.apply(variables, clip, train=True, rngs={"dropout": key})
    )
    one, two = (run(jax.random.key(seed)) for seed in range(2))
    assert not np.allclose(one, two)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_found_by_time(name):
    module, variables = small(name)
    video = RNG.normal(size=(2, 8, 32, 32, 3)).astype(np.float32)
    other = video.copy()
    other[:, 2] += 1  # seen by one patch only: its middle

    @jax.jit
    def run(video):
        _, found = taps.apply(module, variables, video, norm_inputs)
        return {name: tap.by_time() for name, tap in found.items()}

    one, two = run(video), run(other)
    for tap, z in one.items():
        heads = z.shape[3:-1]
        assert z.shape[:2] == (2, 4) and heads in ((), (1,), (2,), (4,)), tap
        assert bool(heads) == ("/pool_" in tap), tap
    for tap, wanted in {
        "block0/norm": [False, True, False, False],
        "block0/attention/pool_k/norm": [True, True, True, False],
    }.items():
        changed = np.abs(one[tap] - two[tap]).reshape(2, 4, -1).max((0, 2)) > 1e-4
        assert changed.tolist() == wanted, tap


def test_the_residual_path_of_a_transition_runs_first():
    module, variables = small("rev_mvit_b")
    clip = jax.ShapeDtypeStruct((1, 8, 32, 32, 3), jnp.float32)
    found: list[str] = []

    def run(x):
        found.extend(taps.apply(module, variables, x, norm_inputs)[1])

    jax.eval_shape(run, clip)
    assert [tap for tap in found if tap.startswith("block1/")][:3] == [
        "block1/attention/pool_q/norm#1",
        "block1/norm",
        "block1/attention/pool_q/norm#2",
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip", [(5, 32), (4, 30)])
def test_clips_that_do_not_fit(name, clip):
    frames, size = clip
    given, _ = zoo.build(name, ("a",), depths=(1,))
    made, _ = zoo.build(name, ("a",), depths=(1,), frames=frames, size=size)
    video = jax.ShapeDtypeStruct((1, frames, size, size, 3), jnp.float32)
    native = jax.ShapeDtypeStruct((1, 16, 224, 224, 3), jnp.float32)
    for module, x in ((given, video), (made, native)):
        with pytest.raises(ValueError, match=f"{frames}x{size}.*2x4x4.*multiple") as e:
            jax.eval_shape(module.init, jax.random.key(0), x)
        assert "\n" not in str(e.value)


# ---- published weights

# What no logit shows: scores of a query grow together by the bias of the keys' norm,
# and only patches of the last block use these, whose class token is read.
KEY_BIAS = r"(norm_k|pool_k\.norm_act\.0)\.bias$"
LAST_BLOCK = r"\.attn\.(rel_pos_[thw]|pool_q\.(pool\.)?weight)$"


@pytest.mark.parametrize(
    "golden", [g for g in NETWORKS if "mvit" in g and "@" not in g]
)
def test_hidden_tensors_are_in_their_places(golden):
    name, _ = NETWORKS[golden]
    source = weights(golden)
    params = loading.convert(name, source).variables["params"]
    naming = namings.recognise(name, source)
    blocks = sum(zoo.entry(name).fields["depths"])
    biases = [key for key in source if re.search(KEY_BIAS, key)]
    last = [k for k in source if re.search(rf"^blocks\.{blocks - 1}{LAST_BLOCK}", k)]
    assert len(biases) == blocks and len(last) == (4 if "mvit_v2" in name else 0)
    for key in biases + last:
        path = rules.target_path(naming, key).split("/")
        ours = functools.reduce(lambda tree, part: tree[part], path, params)
        if isinstance(ours, dict):
            ours = ours["bias" if key.endswith("bias") else "kernel"]
        theirs = source[key]
        if theirs.ndim == 5:
            theirs = theirs.transpose(2, 3, 4, 1, 0)
        np.testing.assert_array_equal(ours, theirs, err_msg=key)


def test_queries_keys_and_values_are_stacked():
    source = weights("ptv_mvit_base_16x4")
    params = loading.convert("mvit_v1_b", source).variables["params"]
    qkv = params["block15"]["attention"]["qkv"]
    for i, part in enumerate("qkv"):
        key = f"blocks.15.attn.{part}"
        rows = slice(768 * i, 768 * (i + 1))
        np.testing.assert_array_equal(qkv["bias"][rows], source[f"{key}.bias"])
        ours = qkv["kernel"][:, rows]
        np.testing.assert_array_equal(ours, source[f"{key}.weight"].T)
    del source["blocks.3.attn.k.bias"]
    source["blocks.4.attn.v.bias"] = source["blocks.4.attn.v.bias"][1:]
    with pytest.raises(UserError, match="missing: .*block3/.*qkv/bias") as error:
        loading.convert("mvit_v1_b", source)
    words = str(error.value)
    assert "blocks.3.attn.q.bias" in words and "blocks.4.attn.v.bias" in words
    assert "\n" not in words


def test_norms_after_pooling_of_pytorchvideo_differ():
    for golden, epsilon in {
        "ptv_mvit_base_16x4": 1e-5,
        "torchvision_mvit_v1_b": 1e-6,
    }.items():
        module = loading.convert("mvit_v1_b", weights(golden)).module
        assert module.pool_epsilon == epsilon


def test_small_and_base_are_told_apart_by_their_blocks():
    source = weights("slowfast_mvitv2_s")
    with pytest.raises(
        UserError, match="these are weights of mvit_v2_s, not of mvit_v2_b"
    ):
        loading.convert("mvit_v2_b", source)
