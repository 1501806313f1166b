"""Bottleneck 3D ResNets: strides, the middle of a block, the head, who is who."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import rule
from parity import keys_and_shapes, weights

from leaps_jax import taps
from leaps_jax.errors import UserError
from leaps_jax.model import norm_inputs
from leaps_jax.models import resnet
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading

# narrow and of one block a stage
SMALL = {
    "depths": (1, 1, 1, 1),
    "inner": (8, 8, 16, 16),
    "stem_features": 8,
    "dropout": 0.0,
}


def small(name, **fields):
    """A narrow network, random variables and a clip."""
    module, _ = zoo.build(name, tuple("abcde"), frames=8, size=64, **SMALL, **fields)
    video = rule.video(8, 64, 1)
    rng = np.random.default_rng(0)

    def random(shape):  # no scale, variance or branch is zero
        if len(shape) == 1:
            return rng.uniform(0.5, 1.5, shape)
        return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)

    variables = jax.tree.map(
        lambda leaf: np.float32(random(leaf.shape)), zoo.variable_shapes(module)
    )
    return module, variables, video


def shapes(name):
    """Frames, height and width of every tap at the model's own clip."""
    module, spec = zoo.build(name, ("a",), **SMALL)
    clip = (1, spec.frames, spec.size, spec.size, 3)
    found = {}

    def run(variables, video):
        _, tapped = taps.apply(module, variables, video, norm_inputs)
        found.update({n: tap.value.shape[1:4] for n, tap in tapped.items()})

    video = jax.ShapeDtypeStruct(clip, jnp.float32)
    jax.eval_shape(run, zoo.variable_shapes(module), video)
    return found


def test_r2plus1d_strides_time_before_space():
    found = shapes("r2plus1d_r50")
    assert found["stem/norm"] == (16, 112, 112)
    assert found["stage1/block0/norm_a"] == (16, 112, 112)  # the stem has no pool
    assert found["stage1/block0/norm_c"] == (16, 56, 56)
    assert found["stage3/block0/norm_a"] == (16, 28, 28)
    assert found["stage3/block0/conv_b/norm"] == (8, 28, 28)
    assert found["stage3/block0/norm_b"] == (8, 14, 14)
    assert found["stage4/block0/shortcut_norm"] == (4, 7, 7)


def test_csn_strides_time_and_space_at_once():
    found = shapes("csn_r50")
    assert found["stem/norm"] == (32, 112, 112)
    assert found["stage1/block0/norm_c"] == (32, 56, 56)
    assert found["stage2/block0/norm_a"] == (32, 56, 56)
    assert found["stage2/block0/norm_b"] == (16, 28, 28)
    assert found["stage4/block0/shortcut_norm"] == (4, 7, 7)


def test_time_is_convolved_with_all_channels_and_then_space():
    layer = resnet.TimeThenSpace(4, (2, 1, 1), norm_epsilon=1e-5)
    x = jnp.asarray(rule.video(6, 8, 1))
    variables = layer.init(jax.random.key(0), x, train=False)
    kernels = {
        k: v["kernel"].shape for k, v in variables["params"].items() if k != "norm"
    }
    assert kernels == {"conv_time": (3, 1, 1, 3, 4), "conv_space": (1, 3, 3, 4, 4)}

    def seen(t, h):
        """The frames and rows of the input that a position of the output depends on."""

        def output(x):
            return layer.apply(variables, x, train=False)[0, t, h, 4].sum()

        depends = np.abs(jax.grad(output)(x)).max((0, 3, 4)) > 0
        return [np.flatnonzero(depends.any(axis)).tolist() for axis in (1, 0)]

    assert seen(1, 4) == [[1, 2, 3], [3, 4, 5]]
    assert seen(0, 0) == [[0, 1], [0, 1]]


def test_channels_meet_only_in_pointwise_convolutions_of_csn():
    _, variables, _ = small("csn_r50")
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        block = variables["params"][stage]["block0"]
        assert block["conv_b"]["kernel"].shape[:4] == (3, 3, 3, 1)
        assert block["conv_a"]["kernel"].shape[:3] == (1, 1, 1)
        assert block["conv_c"]["kernel"].shape[:3] == (1, 1, 1)


def test_an_unknown_middle():
    module, _ = zoo.build("csn_r50", ("a",), middle="depthwise", **SMALL)
    with pytest.raises(ValueError, match="middle='depthwise': .*channel-wise"):
        zoo.variable_shapes(module)


@pytest.mark.parametrize("name", ["r2plus1d_r50", "csn_r50"])
def test_the_head_slides_over_larger_clips(name):
    module, variables, _ = small(name)

    def last_stage(m, method):
        return method == "__call__" and m.name == "stage4"

    @jax.jit
    def run(video):
        logits, found = taps.apply(module, variables, video, last_stage)
        return logits, found["stage4/__call__"].value

    logits, x = jax.device_get(run(rule.video(16, 96, 1)))
    x = x[0].astype(np.float64)  # t h w c
    t, h, w = (8 // {"r2plus1d_r50": 4, "csn_r50": 8}[name], 2, 2)
    assert x.shape[:3] == (2 * t, 3, 3)
    head = variables["params"]["classifier"]
    rows = [
        x[i : i + t, j : j + h, k : k + w].mean((0, 1, 2)) @ head["kernel"]
        for i in range(t + 1)
        for j in range(2)
        for k in range(2)
    ]
    np.testing.assert_allclose(logits[0], np.mean(rows, 0) + head["bias"], rtol=1e-4)


# ---- which model a file is of


def pytorchvideo_name(key: str) -> str:
    """The key of pytorchvideo for one of mmaction2, independent of our tables."""
    key = key.replace("cls_head.fc_cls.", "blocks.5.proj.")
    if "layer" not in key:
        key = key.replace("backbone.conv1.conv.", "blocks.0.conv.")
        return key.replace("backbone.conv1.bn.", "blocks.0.norm.")
    _, stage, block, *place, kind, leaf = key.split(".")
    kind = {"conv": "conv", "bn": "norm"}[kind]
    if place == ["downsample"]:
        name = f"branch1_{kind}"
    else:
        which = {"conv1": "a", "conv2": "b", "conv3": "c"}[place[0]]
        name = f"branch2.{kind}_{which}"
    return f"blocks.{stage.removeprefix('layer')}.res_blocks.{block}.{name}.{leaf}"


def test_csn_r50_under_its_other_names(tmp_path):
    source = weights("mmaction2_csn_r50")
    renamed = {pytorchvideo_name(key): value for key, value in source.items()}
    assert renamed.keys() == keys_and_shapes("ptv_slow_r50").keys()
    one, other = loading.convert("csn_r50", source), loading.convert("csn_r50", renamed)
    leaves = [jax.tree.leaves_with_path(m.variables) for m in (one, other)]
    for (path, a), (same_path, b) in zip(*leaves, strict=True):
        assert path == same_path
        np.testing.assert_array_equal(a, b)
    assert one.module.norm_epsilon == 1e-3
    assert other.module.norm_epsilon == 1e-5
    assert one.spec.mean == other.spec.mean == (0.485, 0.456, 0.406)
    loading.save(other, tmp_path / "csn")
    assert loading.load_model(f"csn_r50@{tmp_path}/csn").module.norm_epsilon == 1e-5


@pytest.mark.parametrize("name", ["r2plus1d_r50", "csn_r50"])
def test_epsilon_is_added_to_every_variance(name):
    module, variables, video = small(name, norm_epsilon=0.5)
    more = jax.tree.map_with_path(
        lambda path, x: x + 0.4 if path[-1].key == "var" else x, variables
    )
    run = jax.jit(module.apply)
    one, changed = run(variables, video), run(more, video)
    other = jax.jit(module.clone(norm_epsilon=0.1).apply)(more, video)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert np.abs(one - changed).max() > 1e-2


@pytest.mark.parametrize(
    ("golden", "model", "wrong"),
    [
        ("ptv_r2plus1d_r50", "r2plus1d_r50", "slow_r50"),
        ("ptv_csn_r101", "csn_r101", "slow_r50"),
        ("ptv_csn_r101", "csn_r101", "csn_r50"),
        ("ptv_slow_r50", "slow_r50 or slow_r50_4x16", "r2plus1d_r50"),
    ],
)
def test_one_network_for_another(golden, model, wrong):
    source = zeros(keys_and_shapes(golden))
    with pytest.raises(
        UserError, match=f"weights of {model}, not of {wrong};"
    ) as error:
        loading.convert(wrong, source)
    assert "\n" not in str(error.value)


def test_csn_r50_of_pytorchvideo_is_no_slow():
    # the same keys, other shapes
    keys = keys_and_shapes("mmaction2_csn_r50")
    source = zeros({pytorchvideo_name(key): shape for key, shape in keys.items()})
    with pytest.raises(UserError, match="weights of csn_r50, not of slow_r50;"):
        loading.convert("slow_r50", source)


def zeros(shapes):
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
