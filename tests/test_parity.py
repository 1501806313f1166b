"""Every network against its upstream implementation, on golden data.

`parity.py` has the networks and how they are measured; then the containers that files
come in, and inputs other than the native one.
"""

import pickle
import re

import checks
import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from golden import rule
from parity import NETWORKS, apply, filled, keys_and_shapes, weights

from leaps_jax.errors import UserError
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading
from leaps_jax.zoo.conversion import namings, rules, sources

MVITS = [name for name in zoo.names() if "mvit" in name]


def flat(variables) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def assert_same(a, b) -> None:
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_the_rule_gives_the_same_numbers_here():
    rule.self_check()


# The largest: two of them beside each other can fill 24 GB.
LATER = {
    *("ptv_x3d_l", "ptv_csn_r101", "hf_vivit_b_16x2", "uniformerv2_l_14_8"),
    *("torchvision_swin3d_s", "torchvision_swin3d_b", "slowfast_mvitv2_b"),
}


@pytest.mark.usefixtures("forget_compiled")
@pytest.mark.parametrize(
    "golden",
    [pytest.param(g, marks=[pytest.mark.heavy] * (g in LATER)) for g in NETWORKS],
)
def test_equals_upstream(golden):
    found = parity.measure(golden)
    print(found)
    assert found.logits <= parity.LOGITS_TOLERANCE
    assert found.means <= parity.TAPS_TOLERANCE
    assert found.stds <= found.stds_tolerance
    assert found.bfloat16 <= parity.BFLOAT16_TOLERANCE
    assert found.control > 10 * parity.LOGITS_TOLERANCE


# Compiled as a whole these take 20 to 30 GB, since XLA recomputes nothing on CPUs; by
# block they take 4 to 7.
LARGE = {
    *("timesformer_hr", "timesformer_l", "vivit_b_16x2", "vivit_l_16x2_fe"),
    *("uniformer_v2_l", "uniformer_v2_l_16f"),
}


@pytest.mark.usefixtures("forget_compiled")
@pytest.mark.heavy
@pytest.mark.parametrize("name", [r["name"] for r in zoo.table() if r["weights"]])
def test_the_gradient_reaches_every_frame(name):
    golden = next((g for g, (n, _) in NETWORKS.items() if n == name), None)
    if golden is None:  # nobody has run it upstream for us
        model = loading.initialize(name, zoo.KINETICS_400, dtype="float32")
    else:
        model = loading.convert(name, weights(golden))
    clip = rule.video(model.spec.frames, model.spec.size, 1)
    if name in LARGE:
        module = model.module.clone(remat=True)
        gradient = jax.grad(lambda x: module.apply(model.variables, x)[0, 3])(clip)
    else:
        gradient = gradient_of(model.module, model.variables, clip)
    checks.assert_gradient_reaches_every_frame(gradient)


def gradient_of(module, variables, clip):
    return jax.jit(jax.grad(lambda x: module.apply(variables, x)[0, 3]))(clip)


@pytest.mark.parametrize("golden", ["timesformer_official", "hf_timesformer_base"])
def test_key_biases_are_in_their_rows(golden):
    # they add one number to all attention logits of a query: no output shows them
    source = weights(golden)
    model = loading.convert("timesformer", source)
    naming = namings.recognise("timesformer", source)
    biases = [k for k in source if k.endswith("qkv.bias")]
    assert len(biases) == 24
    for key in biases:
        block, attention, _ = rules.target_path(naming, key).split("/")
        ours = model.variables["params"][block][attention]["qkv"]["bias"]
        np.testing.assert_array_equal(ours[768:1536], source[key][768:1536])


@pytest.mark.parametrize("golden", [g for g in NETWORKS if "vivit" in g])
def test_key_biases_of_vivit_are_in_their_places(golden):
    source = weights(golden)
    name, _ = NETWORKS[golden]
    params = loading.convert(name, source).variables["params"]
    naming = namings.recognise(name, source)
    biases = [k for k in source if re.search(r"key.bias$", k)]
    assert len(biases) == {"vivit_b_16x2": 12, "vivit_b_16x2_fe": 16}[name]
    for key in biases:
        encoder, block, *_ = rules.target_path(naming, key).split("/")
        ours = params[encoder][block]["attention"]["key"]["bias"]
        np.testing.assert_array_equal(ours, source[key].ravel())


@pytest.mark.parametrize("golden", NETWORKS)
@pytest.mark.parametrize(
    "name", ["slow_r50", "x3d_m", "timesformer", "vivit_b_16x2", "swin3d_t", *MVITS]
)
def test_keys_of_another_family_are_refused(golden, name):
    keys = keys_and_shapes(golden)
    family, wanted = zoo.entry(NETWORKS[golden][0]).family, zoo.entry(name).family
    if family == wanted and NETWORKS[golden][1] in zoo.entry(name).namings:
        assert namings.recognise(name, keys).name == NETWORKS[golden][1]
        return
    with pytest.raises(UserError, match=f"look like.*{NETWORKS[golden][0]}"):
        namings.recognise(name, keys)


# Networks whose weights differ in no name or shape: clips tell them apart.
ALIKE = [
    {"slow_r50", "slow_r50_4x16"},
    {"x3d_xs", "x3d_s", "x3d_m"},
    {"uniformer_v2_l", "uniformer_v2_l_16f"},
]


@pytest.mark.parametrize("golden", NETWORKS)
def test_a_file_is_recognised_by_its_keys_and_shapes(golden):
    shapes = keys_and_shapes(golden)
    zeros = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}
    name = NETWORKS[golden][0]
    alike = next((names for names in ALIKE if name in names), {name})
    if len(alike) == 1:
        assert loading.convert(None, zeros).spec.name == name
        return
    with pytest.raises(UserError, match="can be weights of (.*), which") as error:
        loading.convert(None, zeros)
    named = re.search("weights of (.*), which", str(error.value))[1]
    assert set(named.split(" or ")) == alike


# ---- the containers that files come in


def test_pyth_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    source = weights("slowfast_x3d_xs")
    state = {k: torch.from_numpy(v) for k, v in source.items()}
    path = tmp_path / "x3d_xs.pyth"
    extra = {"epoch": 7, "cfg": "MODEL: x", "optimizer_state": {"state": {}}}
    torch.save({"model_state": state, **extra}, path)
    model = loading.convert("x3d_xs", path)
    assert_same(model.variables, loading.convert("x3d_xs", source).variables)
    assert model.spec.source == f"{path} (slowfast)"
    assert model.spec.licence == "Apache-2.0"
    assert model.spec.classes == zoo.KINETICS_400


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", None])
def test_wrappers_of_a_pth(tmp_path, wrapper):
    torch = pytest.importorskip("torch")
    source = weights("ptv_x3d_xs")
    state = {k: torch.from_numpy(v) for k, v in source.items()}
    torch.save({wrapper: state} if wrapper else state, tmp_path / "x.pth")
    read = sources.read(tmp_path / "x.pth")
    assert read.keys() == source.keys()
    assert all(np.array_equal(read[k], source[k]) for k in source)


@pytest.mark.parametrize("sharded", [False, True])
def test_hugging_face_folder(tmp_path, sharded):
    save = pytest.importorskip("safetensors.numpy").save_file
    source = weights("hf_timesformer_base")
    if sharded:
        import json

        keys = list(source)
        parts = {"a.safetensors": keys[:100], "b.safetensors": keys[100:]}
        for part, some in parts.items():
            save({k: source[k] for k in some}, tmp_path / part)
        where = {k: part for part, some in parts.items() for k in some}
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    else:
        save(source, tmp_path / "model.safetensors")
    read = sources.read(tmp_path)
    assert read.keys() == source.keys()
    assert all(np.array_equal(read[k], source[k]) for k in source)


def test_half_precision_becomes_float32(tmp_path):
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save_file
    state = {"a": torch.tensor([1.5, 2.0]).bfloat16(), "b": torch.ones(2).half()}
    save(state, tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        read = sources.read(tmp_path / name)
        assert {v.dtype for v in read.values()} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(read["a"], [1.5, 2.0])


def caffe2_name(key: str) -> str | None:
    """The blob of a SlowFast key, written down independently of our table."""
    if key.endswith("num_batches_tracked"):
        return None
    key = key.replace("s1.pathway0_stem.conv.weight", "conv1_w")
    key = key.replace("s1.pathway0_stem.bn.", "res_conv1_bn.")
    key = key.replace("head.projection.weight", "pred_w")
    key = key.replace("head.projection.bias", "pred_b")
    key = re.sub(
        r"^s(\d)\.pathway0_res(\d)\.branch1_bn\.", r"res\1_\2_branch1_bn.", key
    )
    key = re.sub(
        r"^s(\d)\.pathway0_res(\d)\.branch1\.weight", r"res\1_\2_branch1_w", key
    )
    stem = r"^s(\d)\.pathway0_res(\d)\.branch2\.([abc])"
    key = re.sub(stem + r"_bn\.", r"res\1_\2_branch2\3_bn.", key)
    key = re.sub(stem + r"\.weight", r"res\1_\2_branch2\3_w", key)
    for theirs, blob in {
        "weight": "s",
        "bias": "b",
        "running_mean": "rm",
        "running_var": "riv",
    }.items():
        key = re.sub(rf"_bn\.{theirs}$", f"_bn_{blob}", key)
    return key


def caffe2_blobs(source: dict[str, np.ndarray]) -> dict[str, object]:
    blobs: dict[str, object] = {"lr": np.float32(0.1), "model_iter": np.array([3])}
    for key, value in source.items():
        if (name := caffe2_name(key)) is not None:
            if name.endswith("_w") and value.shape[-3:] == (1, 1, 1):
                value = value[..., 0]  # stored with fewer axes
            blobs[name] = value
            blobs[f"{name}_momentum"] = np.zeros_like(value)
    return blobs


@pytest.mark.parametrize("name", ["slow_r50", "slow_r50_4x16"])
def test_caffe2_pickle(tmp_path, name):
    source = weights("slowfast_slow_8x8_r50")
    path = tmp_path / "SLOWONLY.pkl"
    path.write_bytes(pickle.dumps({"blobs": caffe2_blobs(source)}, protocol=2))
    model = loading.convert(name, path)
    assert "caffe2" in model.spec.source
    assert_same(model.variables, loading.convert("slow_r50", source).variables)


def test_i3d_under_its_other_names():
    # SlowFast does not shift the stages by the pool: its keys are those of Slow
    ours = keys_and_shapes("slowfast_slow_8x8_r50")
    shapes = keys_and_shapes("ptv_i3d_r50").values()
    source = filled(dict(zip(ours, shapes, strict=True)))
    slowfast = loading.convert("i3d_r50", source)
    caffe2 = loading.convert("i3d_r50", caffe2_blobs_read(source))
    assert_same(slowfast.variables, caffe2.variables)
    with pytest.raises(
        UserError, match="these are weights of i3d_r50, not of slow_r50"
    ):
        loading.convert("slow_r50", source)


def caffe2_blobs_read(source):
    return {k: np.asarray(v) for k, v in caffe2_blobs(source).items()}


def test_prefix_of_the_official_timesformer_may_be_missing():
    source = weights("timesformer_official")
    bare = {k.removeprefix("model."): v for k, v in source.items()}
    a = loading.convert("timesformer", source).variables
    assert_same(a, loading.convert("timesformer", bare).variables)


def test_vivit_as_transformers_5_holds_it():
    source = weights("hf_vivit_b_16x2")
    renamed = {}
    for key, value in source.items():
        for old, new in {
            "encoder.layer.": "layers.",
            "attention.attention.query": "attention.q_proj",
            "attention.attention.key": "attention.k_proj",
            "attention.attention.value": "attention.v_proj",
            "attention.output.dense": "attention.o_proj",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
        }.items():
            key = key.replace(old, new)
        renamed[key] = value
    assert renamed.keys() != source.keys()
    a = loading.convert("vivit_b_16x2", source).variables
    assert_same(a, loading.convert("vivit_b_16x2", renamed).variables)


def scenic_tree(golden: str, width: int, heads: int) -> dict:
    """Random parameters named as in a golden file, of one block and other sizes."""
    small = {768: width, 3072: 2 * width, 12: heads, 64: width // heads}
    small |= {3137: 1 + 2 * 4, 197: 1 + 4, 17: 1 + 2, 400: 7}
    rng = np.random.default_rng(0)
    return flax.traverse_util.unflatten_dict(
        {
            key: rng.normal(size=[small.get(n, n) for n in shape]).astype(np.float32)
            for key, shape in keys_and_shapes(golden).items()
            if not re.search(r"encoderblock_[1-9]", key)
        },
        sep="/",
    )


@pytest.mark.parametrize("name", ["vivit_b_16x2", "vivit_b_16x2_fe"])
@pytest.mark.parametrize("layout", ["optimizer", "params", "plain"])
def test_checkpoint_of_scenic(tmp_path, name, layout):
    tree = scenic_tree(f"scenic_{name}", 24, 3)
    moments = jax.tree.map(np.zeros_like, tree)
    progress = {"global_step": 3, "rng": np.zeros(2, np.uint32), "model_state": {}}
    state = {
        "optimizer": {
            "optimizer": {
                "target": tree,
                "state": {"step": np.array(3), "param_states": moments},
            },
            "accum_train_time": np.array(5),
            **progress,
        },
        "params": {"params": tree, "opt_state": {"0": {"trace": moments}}, **progress},
        "plain": tree,
    }[layout]
    path = tmp_path / "checkpoint"
    path.write_bytes(flax.serialization.msgpack_serialize(state))
    read = sources.read(path)
    naming = namings.recognise(name, read)
    fields = {"width": 24, "heads": 3, "hidden": 48, "depth": 1}
    fields["temporal_depth"] = 1 if name.endswith("_fe") else 0
    module, _ = zoo.build(name, ("",) * 7, frames=4, size=32, **fields)
    params = rules.convert_tensors(read, naming, zoo.variable_shapes(module))["params"]

    assert rules.head_shape(read, naming, "classifier") == (7, 24)
    encoder = "spatial" if name.endswith("_fe") else "encoder"
    theirs = tree["SpatialTransformer" if name.endswith("_fe") else "Transformer"]
    theirs = theirs["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    ours = params[encoder]["block0"]["attention"]
    x = np.random.default_rng(1).normal(size=(2, 24))
    query = np.einsum("nc,chd->nhd", x, theirs["query"]["kernel"])
    np.testing.assert_allclose(x @ ours["query"]["kernel"], query.reshape(2, 24))
    out = np.einsum("nhd,hdc->nc", query, theirs["out"]["kernel"])
    np.testing.assert_allclose(query.reshape(2, 24) @ ours["proj"]["kernel"], out)


def test_one_vivit_for_another():
    def zeros(golden):
        return {k: np.zeros(s, np.float32) for k, s in keys_and_shapes(golden).items()}

    joint, factorised = zeros("scenic_vivit_b_16x2"), zeros("scenic_vivit_b_16x2_fe")
    with pytest.raises(UserError, match="weights of vivit_b_16x2_fe, not of vivit_b"):
        loading.convert("vivit_b_16x2", factorised)
    with pytest.raises(
        UserError, match="weights of vivit_b_16x2, not of vivit_b_16x2_"
    ):
        loading.convert("vivit_b_16x2_fe", joint)


# ---- other inputs than the native one


@pytest.mark.parametrize("size", [182, 256])
def test_x3d_averages_logits_of_all_positions(size):
    model = loading.convert("x3d_xs", weights("ptv_x3d_xs"))
    clip = rule.video(4, size, 1)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda v, x: head_of(*apply(model.module, v, x)))
        logits, x = jax.device_get(run(model.variables, clip))
    params, stats = model.variables["params"], model.variables["batch_stats"]
    norm, moments = params["head"]["norm"], stats["head"]["norm"]
    x = x[0].astype(np.float64)  # 4 h w c
    x = (x - moments["mean"]) / np.sqrt(moments["var"] + 1e-5)
    x = np.maximum(x * norm["scale"] + norm["bias"], 0)
    edge = x.shape[1] - 5 + 1
    assert edge >= 2
    rows = []
    for i in range(edge):
        for j in range(edge):
            rows.append(classified(params, x[:, i : i + 5, j : j + 5].mean((0, 1, 2))))
    assert np.abs(logits[0] - np.mean(rows, 0)).max() < 1e-4
    assert np.abs(logits[0] - classified(params, x.mean((0, 1, 2)))).max() > 1e-3


def head_of(logits, found):
    return logits, found["head/norm"].value


def classified(params, x):
    x = np.maximum(x @ params["head"]["expand"]["kernel"], 0)
    return x @ params["classifier"]["kernel"] + params["classifier"]["bias"]


@pytest.mark.heavy
def test_timesformer_takes_other_clips():
    model = loading.convert("timesformer", weights("timesformer_official"))
    gradient = gradient_of(model.module, model.variables, rule.video(4, 160, 1))
    checks.assert_gradient_reaches_every_frame(gradient)


def test_timesformer_resizes_embeddings_as_torch_does():
    torch = pytest.importorskip("torch")
    resize = torch.nn.functional.interpolate
    module, _ = zoo.build("timesformer_small", ("a", "b"), frames=8, size=224, depth=2)
    small, _ = zoo.build("timesformer_small", ("a", "b"), frames=3, size=160, depth=2)
    variables = jax.tree.map(
        lambda leaf: np.random.default_rng(0).normal(0, 0.1, leaf.shape),
        zoo.variable_shapes(module),
    )
    params = dict(variables["params"])
    position = torch.from_numpy(params["position_embedding"])
    grid = position[:, 1:].reshape(1, 14, 14, 192).permute(0, 3, 1, 2)
    grid = resize(grid, size=(10, 10), mode="nearest").permute(0, 2, 3, 1)
    resized = torch.cat([position[:, :1], grid.reshape(1, 100, 192)], dim=1)
    time = torch.from_numpy(params["time_embedding"]).transpose(1, 2)
    params["position_embedding"] = resized.numpy()
    time = resize(time, size=3, mode="nearest").transpose(1, 2)
    params["time_embedding"] = time.numpy()
    clip = jnp.asarray(rule.video(3, 160, 1))
    a = jax.jit(module.apply)(variables, clip)
    b = jax.jit(small.apply)({"params": params}, clip)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temporal_depth", [0, 1])
def test_vivit_resizes_embeddings_linearly(temporal_depth):
    torch = pytest.importorskip("torch")
    resize = torch.nn.functional.interpolate
    fields = {"depth": 1, "temporal_depth": temporal_depth}
    module, _ = zoo.build("vivit_small", ("a", "b"), frames=16, size=224, **fields)
    small, _ = zoo.build("vivit_small", ("a", "b"), frames=6, size=160, **fields)
    variables = jax.tree.map(
        lambda leaf: np.random.default_rng(0).normal(0, 0.1, leaf.shape),
        zoo.variable_shapes(module),
    )
    grids = {
        "encoder": ("trilinear", (8, 14, 14), (3, 10, 10)),
        "spatial": ("bilinear", (14, 14), (10, 10)),
        "temporal": ("linear", (8,), (3,)),
    }
    params = dict(variables["params"])
    for name in set(params) & set(grids):
        mode, have, want = grids[name]
        position = torch.from_numpy(params[name]["position_embedding"])
        grid = position[:, 1:].movedim(-1, 1).reshape(1, 192, *have)
        grid = resize(grid, size=want, mode=mode).reshape(1, 192, -1).movedim(1, -1)
        position = torch.cat([position[:, :1], grid], dim=1).numpy()
        params[name] = params[name] | {"position_embedding": position}
    clip = jnp.asarray(rule.video(6, 160, 1))
    a = jax.jit(module.apply)(variables, clip)
    b = jax.jit(small.apply)({"params": params}, clip)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
