"""Published tensors go to their places, or one line says what does not fit."""

import jax
import numpy as np
import pytest
from damage import one_line

from leaps_jax.errors import UserError
from leaps_jax.zoo import load as loading
from leaps_jax.zoo.conversion import namings, rules
from leaps_jax.zoo.conversion.families import resnet

TOY = rules.Naming(
    "toy",
    rules=((r"^fc\.", "classifier."), (r"^bn\.", "norm."), (r"^cls$", "token")),
    ignored=((r"num_batches_tracked", "counts steps"),),
)
TOY_TARGET = {
    "params": {
        "classifier": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)},
        "norm": {"scale": np.zeros(3), "bias": np.zeros(3)},
        "token": np.zeros((1, 1, 3)),
    },
    "batch_stats": {"norm": {"mean": np.zeros(3), "var": np.zeros(3)}},
}
TOY_SOURCE = {
    "fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fc.bias": np.ones(2),
    "bn.weight": np.full(3, 2.0),
    "bn.bias": np.full(3, 3.0),
    "bn.running_mean": np.full(3, 4.0),
    "bn.running_var": np.full(3, 5.0),
    "bn.num_batches_tracked": np.array(6),
    "cls": np.full((1, 1, 3), 7.0),
}


def test_every_leaf_goes_to_its_place():
    variables = rules.convert_tensors(TOY_SOURCE, TOY, TOY_TARGET)
    kernel = variables["params"]["classifier"]["kernel"]
    np.testing.assert_array_equal(kernel, TOY_SOURCE["fc.weight"].T)
    assert variables["params"]["norm"]["scale"][0] == 2
    assert variables["batch_stats"]["norm"]["mean"][0] == 4
    assert variables["batch_stats"]["norm"]["var"][0] == 5
    assert variables["params"]["token"].shape == (1, 1, 3)
    shapes = jax.tree.map(np.shape, variables)
    assert shapes == jax.tree.map(np.shape, TOY_TARGET)


def test_placing_copies_nothing():
    placed = rules.place(TOY_SOURCE, TOY, TOY_TARGET)
    kernel = placed["params", "classifier", "kernel"]
    assert np.shares_memory(kernel, TOY_SOURCE["fc.weight"])
    scale = placed["params", "norm", "scale"]
    assert scale.dtype == np.float64 and np.shares_memory(
        scale, TOY_SOURCE["bn.weight"]
    )


def test_one_line_lists_every_mismatch():
    source = dict(TOY_SOURCE, extra=np.zeros(1))
    del source["cls"]
    source["fc.bias"] = np.zeros(5)
    source["classifier.weight"] = source["fc.weight"]
    with pytest.raises(UserError) as error:
        rules.convert_tensors(source, TOY, TOY_TARGET)
    text = one_line(error)
    assert "1 tensors missing: params/token" in text
    assert "1 tensors unknown: extra" in text
    assert "fc.bias (5,) for classifier/bias (2,)" in text
    assert "classifier.weight and fc.weight" in text


@pytest.mark.parametrize(
    ("key", "tensor", "words"),
    [
        ("fc.bias", np.array([1, np.nan]), "not finite: params/classifier/bias"),
        ("fc.bias", np.array([1, -np.inf]), "not finite"),
        ("fc.bias", np.array([True, False]), "not floating-point"),
        ("fc.bias", np.array([1, 2]), "not floating-point"),
        ("bn.running_var", np.full(3, -1.0), "negative variances"),
    ],
)
def test_tensors_that_no_training_made(key, tensor, words):
    with pytest.raises(UserError, match=f"{words}.*give trained weights") as error:
        rules.convert_tensors(TOY_SOURCE | {key: tensor}, TOY, TOY_TARGET)
    one_line(error)


def test_long_lists_are_cut():
    source = dict(TOY_SOURCE, **{f"extra{i}": np.zeros(1) for i in range(25)})
    with pytest.raises(UserError, match="25 tensors unknown: .* and 15 more"):
        rules.convert_tensors(source, TOY, TOY_TARGET)


def test_layouts():
    rng = np.random.default_rng(0)
    for shape, ndim, wanted in [
        ((4, 3, 1, 2, 5), 5, (1, 2, 5, 3, 4)),
        ((4, 3, 2, 5), 4, (2, 5, 3, 4)),
        ((4, 3), 2, (3, 4)),
        ((4, 3, 1, 1, 1), 2, (3, 4)),
        ((4, 3), 5, (1, 1, 1, 3, 4)),
        ((4, 3, 2, 1, 1), 2, (4, 3, 2)),  # no matrix: left for the shape check
    ]:
        tensor = rng.normal(size=shape)
        assert rules.to_layout(tensor, "kernel", ndim).shape == wanted
    tensor = rng.normal(size=(4, 3))
    assert rules.to_layout(tensor, "embedding", 2) is tensor


def test_weights_of_another_model_are_named():
    cases = {
        "head.lin_5.weight s1.pathway0_stem.conv_xy.weight": "x3d_xs or x3d_s",
        "features.0.0.attn.relative_position_bias_table features.6.1.norm2.weight"
        " head.weight": "swin3d_t or swin3d_s or swin3d_b",
        "vivit.embeddings.cls_token classifier.weight": "vivit_b_16x2",
        "s1.pathway1_stem.conv.weight": "a two-pathway SlowFast",
        "something.weight": "found something.weight",
    }
    for keys, words in cases.items():
        with pytest.raises(UserError, match=f"not weights of slow_r50.*{words}") as e:
            namings.recognise("slow_r50", keys.split())
        one_line(e)
    with pytest.raises(UserError, match="no published source"):
        namings.recognise("x3d_xs_small", ["head.lin_5.weight"])


def test_number_of_classes_comes_from_the_file():
    head = {"head.projection.weight": np.zeros((7, 2048), np.float32)}
    shape = rules.head_shape(head, resnet.SLOWFAST, "classifier")
    assert shape == (7, 2048)
    with pytest.raises(UserError) as error:
        loading._converted("slow_r50", head, resnet.SLOWFAST)
    text = one_line(error)
    assert "tensors missing" in text and "another shape" not in text
