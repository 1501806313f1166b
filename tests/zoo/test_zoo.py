"""The table of models: sizes, costs, names, and options of the networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax import Model, taps
from leaps_jax.errors import UserError
from leaps_jax.models.layers import ConvStem
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import costs

# as the papers and the published files have them
PARAMETERS = {
    "slow_r50": 32_454_096,
    "slow_r50_4x16": 32_454_096,
    "i3d_r50": 28_043_472,
    "r2plus1d_r50": 28_107_600,
    "csn_r50": 13_131_152,
    "csn_r101": 22_213_776,
    "r3d_18": 33_371_472,
    "mc3_18": 11_695_440,
    "r2plus1d_18": 31_505_325,
    "x3d_xs": 3_794_322,
    "x3d_l": 6_153_432,
    "timesformer": 121_566_352,
    # more embeddings: 785 places for 197, and 16 or 96 times for 8
    "timesformer_hr": 121_566_352 + (785 - 197 + 16 - 8) * 768,
    "timesformer_l": 121_566_352 + (96 - 8) * 768,
    "vivit_b_16x2": 88_954_000,
    "vivit_b_16x2_fe": 115_062_928,
    "uniformer_v2_b": 114_552_208,
    "uniformer_v2_l": 354_099_600,
    "uniformer_v2_l_16f": 354_099_600,
    "swin3d_t": 28_158_070,
    "swin3d_s": 49_816_678,
    "swin3d_b": 88_048_984,
    "mvit_v1_b": 36_610_672,
    "mvit_v2_s": 34_537_744,
    "mvit_v2_b": 51_230_128,
    "rev_mvit_b": 34_963_120,
}
GMACS = {
    "slow_r50": 41.74,
    "slow_r50_4x16": 20.87,
    "i3d_r50": 28.41,
    "r2plus1d_r50": 57.53,
    "csn_r50": 42.31,
    "csn_r101": 56.47,
    "r3d_18": 40.70,
    "mc3_18": 43.34,
    "r2plus1d_18": 40.52,
    "x3d_xs": 0.605,
    "x3d_s": 1.963,
    "x3d_m": 4.732,
    "x3d_l": 18.37,
    "timesformer": 195.8,
    "timesformer_hr": 5110 / 3,  # the paper counts three crops
    "timesformer_l": 7140 / 3,
    "vivit_b_16x2": 451.5,
    "vivit_b_16x2_fe": 283,
    "uniformer_v2_b": 148.1,
    "uniformer_v2_l": 665.6,
    "uniformer_v2_l_16f": 1331.2,
    "swin3d_t": 87.76,
    "swin3d_s": 165.7,
    "swin3d_b": 281.3,
    "mvit_v1_b": 70.60,
    "mvit_v2_s": 64.22,
    "mvit_v2_b": 224.5,
    "rev_mvit_b": 63.65,
}
# the names that the zoo has promised
PROMISED = """
    slow_r50 i3d_r50 c2d_r50 r2plus1d_r50 csn_r50 csn_r101
    x3d_xs x3d_s x3d_m x3d_l r3d_18 mc3_18 r2plus1d_18
    timesformer vivit_b_16x2 vivit_b_16x2_fe vivit_l_16x2_fe swin3d_t swin3d_s swin3d_b
    mvit_v1_b mvit_v2_s mvit_v2_b rev_mvit_b uniformer_v2_b uniformer_v2_l
""".split()
SMALL = [name for name in zoo.names() if name.endswith("_small")]


@pytest.mark.parametrize("name", zoo.names())
def test_counts_are_what_the_table_and_the_papers_say(name):
    entry = zoo.entry(name)
    shapes = zoo.variable_shapes(zoo.build(name, ("",) * 400)[0])
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes["params"])]
    assert sum(sizes) == entry.parameters
    assert entry.parameters == PARAMETERS.get(name, entry.parameters)
    assert costs.gmacs(name) == pytest.approx(entry.gmacs, rel=1e-3)
    assert entry.gmacs == pytest.approx(GMACS.get(name, entry.gmacs), rel=1e-2)


@pytest.mark.parametrize("name", ["x3d_xs", "timesformer_small", "vivit_small"])
def test_counts_of_a_gpu_are_the_same(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    module, _ = zoo.build(name, ("",) * 400, dtype=jnp.bfloat16)
    assert costs.macs(module) / 1e9 == pytest.approx(zoo.entry(name).gmacs, rel=0.016)


def test_products_that_the_gradient_of_a_clip_takes():
    def counts(depth):
        fields = {"depth": depth, "stem": (), "frames": 2}
        module, _ = zoo.build("timesformer_small", ("a",), **fields)
        return np.array([costs.macs(module), costs.macs_with_gradient(module)])

    c, tokens = 192, 2 * 50  # of two frames, each with its class token
    layers = (4 + 1 + 4 + 2 * 4) * tokens * c * c  # of both attentions and the MLP
    pairs = 2 * (tokens * 50 + tokens * 2) * c  # scores and sums, in space and time
    np.testing.assert_array_equal(
        counts(1) - counts(0), [layers + pairs, 2 * layers + 3 * pairs]
    )


@pytest.mark.parametrize("name", ["slow_r50_tiny", "x3d_xs_small"])
def test_all_products_of_a_convolutional_network_are_with_weights(name):
    module, _ = zoo.build(name, ("a",))
    assert costs.macs_with_gradient(module) == 2 * costs.macs(module)


@pytest.mark.parametrize("name", zoo.names())
def test_number_of_taps(name):
    module, spec = zoo.build(name, ("a",))
    model = Model(module, zoo.variable_shapes(module), spec)
    assert len(taps.tap_names(model)) == zoo.entry(name).taps


def test_promised_names_are_here():
    assert set(PROMISED) <= set(zoo.names())


def test_x3d_of_pytorchvideo_has_one_norm_less():
    module, _ = zoo.build("x3d_xs", ("",) * 400, shortcut_norm_on_stride=False)
    params = zoo.variable_shapes(module)["params"]
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 3_794_274


def test_every_entry_is_complete():
    for row in zoo.table():
        assert row["paper"] and row["family"]
        assert bool(row["namings"]) == bool(row["weights"]) == bool(row["licence"])
    assert "non-commercial" in zoo.entry("timesformer").licence


def test_kinetics_names():
    assert len(zoo.KINETICS_400) == len(set(zoo.KINETICS_400)) == 400
    assert list(zoo.KINETICS_400) == sorted(zoo.KINETICS_400)
    assert zoo.KINETICS_400[169] == "juggling balls"


def test_unknown_names_are_one_line_with_the_nearest():
    with pytest.raises(UserError, match="did you mean x3d_xs") as error:
        zoo.entry("x3d-xs")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="did you mean dropout"):
        zoo.build("x3d_xs", ("a",), droput=0.1)


def shallow(name):
    """A network of the family with one or two blocks a stage, all of them active."""
    module, _ = zoo.build(name, tuple("abcde"), frames=4, size=64)
    few = {"depth": 2} if hasattr(module, "depth") else {"depths": (2, 1, 1, 1)}
    module = module.clone(**few)
    rng = np.random.default_rng(0)
    video = rng.normal(size=(2, 4, 64, 64, 3)).astype(np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), video)
    variables = jax.tree.map(  # no scale stays zero
        lambda leaf: (
            leaf + rng.uniform(0, 0.2, leaf.shape[-1:]).astype(np.float32)
            if leaf.ndim == 1
            else leaf
        ),
        variables,
    )
    return module, variables, video


@pytest.mark.parametrize("name", [*SMALL, "uniformer_v2_b"])
def test_training_mode_updates_statistics_and_drops_out(name):
    module, given, video = shallow(name)
    module = module.clone(dropout=0.5)

    def loss(params, key):
        variables = {**given, "params": params}
        logits, updates = module.apply(
            variables, video, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return jnp.square(logits - 1).sum(), (logits, updates)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (one, updates)), gradient = step(given["params"], jax.random.key(0))
    (_, (two, _)), _ = step(given["params"], jax.random.key(1))
    assert not np.allclose(one, two)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert ("batch_stats" in updates) == ("batch_stats" in given)
    for old, new in zip(
        jax.tree.leaves(given.get("batch_stats", {})),
        jax.tree.leaves(updates.get("batch_stats", {})),
        strict=True,
    ):
        assert not np.array_equal(old, new)


def test_a_stem_halves_the_size_at_every_convolution_and_sees_three_frames():
    stem, x = ConvStem((4, 6)), jnp.zeros((2, 5, 16, 24, 3))
    variables = stem.init(jax.random.key(0), x)
    assert stem.apply(variables, x).shape == (2, 5, 4, 6, 6)
    kernels = [variables["params"][f"conv{i}"]["kernel"].shape for i in range(2)]
    assert kernels == [(1, 3, 3, 3, 4), (3, 3, 3, 4, 6)]
    none = ConvStem(())
    np.testing.assert_array_equal(none.apply({}, x), x)  # the published models
    noise = jax.random.normal(jax.random.key(1), x.shape)
    one, other = (stem.apply(variables, noise.at[:, 2].add(d)) for d in (0.0, 1.0))
    changed = np.abs(one - other).max((0, 2, 3, 4)) > 1e-4
    assert changed.tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("x3d_xs", (1, 2, 160, 160, 3), "more frames"),
        ("slow_r50_4x16", (1, 4, 160, 160, 3), "larger size"),
        ("r2plus1d_r50", (1, 12, 224, 224, 3), "4x7x7 .* 3x7x7; use more frames"),
        ("csn_r101", (1, 32, 192, 192, 3), "4x7x7 .* 4x6x6; .*larger size"),
        ("timesformer_small", (1, 4, 100, 100, 3), "multiple of 16"),
        ("vivit_small", (1, 4, 112, 100, 3), "4x112x100.*tubelets of 2x16x16"),
        ("vivit_small", (1, 5, 112, 112, 3), "5x112x112.*multiple"),
        ("uniformer_v2_b", (1, 2, 224, 192, 3), "frames of 224x192.*size=224"),
    ],
)
def test_clips_that_do_not_fit(name, shape, words):
    module, _ = zoo.build(name, ("a",))
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(ValueError, match=words) as error:
        jax.eval_shape(module.init, jax.random.key(0), video)
    assert "\n" not in str(error.value)
