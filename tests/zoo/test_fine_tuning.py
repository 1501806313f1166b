"""A trained model with other classes."""

import dataclasses

import jax
import numpy as np
import pytest
from damage import one_line

from leaps_jax import taps
from leaps_jax.errors import UserError
from leaps_jax.models import timesformer
from leaps_jax.zoo import load as loading


def test_other_classes_get_a_new_classifier_and_nothing_else(model):
    tuned = loading.for_classes(model, tuple("abc"))
    assert tuned.spec.classes == ("a", "b", "c")
    old, new = (dict(m.variables["params"]) for m in (model, tuned))
    assert new.pop("classifier")["kernel"].shape[-1] == 3
    old.pop("classifier")
    jax.tree.map(np.testing.assert_array_equal, old, new)
    jax.tree.map(
        np.testing.assert_array_equal,
        model.variables["batch_stats"],
        tuned.variables["batch_stats"],
    )
    video = np.random.default_rng(0).random((1, 4, 32, 32, 3), np.float32)
    assert taps.predict(tuned, video).shape == (1, 3)
    assert tuned.spec == dataclasses.replace(model.spec, classes=("a", "b", "c"))


def test_the_same_classes_keep_the_classifier(model):
    assert loading.for_classes(model, model.spec.classes) is model
    longer = loading.for_classes(model, model.spec.classes, size=64, stride=5)
    assert (longer.spec.size, longer.spec.stride, longer.module.size) == (64, 5, 64)
    jax.tree.map(np.testing.assert_array_equal, model.variables, longer.variables)
    swapped = loading.for_classes(model, model.spec.classes[::-1], seed=1)
    kernels = [m.variables["params"]["classifier"]["kernel"] for m in (model, swapped)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0, "labels index another order"


@pytest.mark.parametrize("clip", [{"frames": 8}, {"size": 64}])
def test_embeddings_are_made_for_a_clip(monkeypatch, clip):
    monkeypatch.setitem(timesformer.VARIANTS["timesformer_small"], "depth", 1)
    model = loading.initialize("timesformer_small", ("a", "b"), frames=4, size=32)
    assert loading.for_classes(model, ("c",), stride=3).spec.stride == 3
    with pytest.raises(UserError, match="made for 4 frames of 32 pixels") as error:
        loading.for_classes(model, ("a", "b"), **clip)
    ((name, value),) = clip.items()
    assert f"{name}={value}" in one_line(error)
