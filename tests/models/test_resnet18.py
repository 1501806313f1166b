"""3D ResNets of 18 layers: where time is convolved, factorised widths, any clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import rule
from parity import keys_and_shapes

from leaps_jax import taps
from leaps_jax.errors import UserError
from leaps_jax.model import norm_inputs
from leaps_jax.models import resnet18
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading


def small(name):
    """A narrow network, random variables and a clip."""
    fields = {"depths": (1, 1, 1, 1), "features": (8, 8, 16, 16)}
    module, _ = zoo.build(name, tuple("abcde"), frames=8, size=32, **fields)
    video = rule.video(8, 32, 1)
    rng = np.random.default_rng(0)

    def random(shape):  # no scale, variance or branch is zero
        if len(shape) == 1:
            return rng.uniform(0.5, 1.5, shape)
        return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)

    variables = jax.tree.map(
        lambda leaf: np.float32(random(leaf.shape)), zoo.variable_shapes(module)
    )
    return module, variables, video


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("r3d_18", [16, 16, 8, 4, 2]),
        ("mc3_18", [16, 16, 16, 16, 16]),
        ("r2plus1d_18", [16, 16, 8, 4, 2]),
    ],
)
def test_time_is_halved_where_it_is_convolved(name, frames):
    module, spec = zoo.build(name, ("a",))
    found = {}

    def run(variables, video):
        _, tapped = taps.apply(module, variables, video, norm_inputs)
        found.update(tapped)

    shape = (1, spec.frames, spec.size, spec.size, 3)
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    jax.eval_shape(run, zoo.variable_shapes(module), video)
    ends = ["stem/norm", *(f"stage{i}/block1/norm_b" for i in (1, 2, 3, 4))]
    sizes = [(f, n, n) for f, n in zip(frames, [56, 56, 28, 14, 7], strict=True)]
    assert [found[end].value.shape[1:4] for end in ends] == sizes
    assert {tap.time_axis for tap in found.values()} == {1}
    # the spatial half strides space alone
    if name == "r2plus1d_18":
        middle = found["stage2/block0/conv_a/norm"]
        assert middle.value.shape[1:4] == (16, 28, 28)


def test_a_factorised_convolution_has_the_parameters_of_a_whole_one():
    for inputs, outputs in [(64, 64), (64, 128), (256, 512), (7, 30)]:
        width = resnet18.between(inputs, outputs)
        whole, each = 27 * inputs * outputs, 9 * inputs + 3 * outputs
        assert width * each <= whole < (width + 1) * each


def test_both_convolutions_of_a_block_are_as_wide_between():
    module, _ = zoo.build("r2plus1d_18", ("a",))
    params = zoo.variable_shapes(module)["params"]
    block = params["stage2"]["block0"]
    assert block["conv_a"]["conv_space"]["kernel"].shape == (1, 3, 3, 64, 230)
    assert block["conv_b"]["conv_space"]["kernel"].shape == (1, 3, 3, 128, 230)
    assert params["stem"]["conv"]["kernel"].shape == (1, 7, 7, 3, 45)


def test_mixed_convolutions_see_time_in_the_first_stage_alone():
    module, variables, video = small("mc3_18")

    def last_stage(m, method):
        return method == "__call__" and m.name == "stage4"

    def frame(x):
        _, found = taps.apply(module, variables, x, last_stage)
        return found["stage4/__call__"].value[0, 4].sum()

    depends = np.abs(jax.jit(jax.grad(frame))(video)).max((0, 2, 3, 4)) > 0
    # one frame to each side in the stem and in each convolution of the block
    assert np.flatnonzero(depends).tolist() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [("r3d_18", 5, 45), ("mc3_18", 1, 16), ("r2plus1d_18", 1, 16)],
)
def test_any_clip_will_do(name, frames, size):
    module, variables, _ = small(name)
    logits = jax.jit(module.apply)(variables, rule.video(frames, size, 1))
    assert logits.shape == (1, 5) and np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("r3d_18", "mc3_18"), ("mc3_18", "r3d_18"), ("r2plus1d_18", "r3d_18")],
)
def test_one_network_for_another(name, wrong):
    shapes = keys_and_shapes(f"torchvision_{name}")
    source = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    with pytest.raises(UserError, match=f"weights of {name}, not of {wrong};") as error:
        loading.convert(wrong, source)
    assert "\n" not in str(error.value)
