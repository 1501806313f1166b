"""`leaps-jax accuracy`: what it prints and what it refuses."""

import json

import numpy as np
import pytest
from command import CLASSES, assert_refused


def test_accuracy_as_json_and_as_a_table(call, root):
    words = ["accuracy", "--data", "{root}/tree", "--model"]
    ran = call(*words, "timesformer_small@{root}/weights", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["clips"] == 6 and found["reversed_pairs"] == {}
    assert found["classes"].keys() == set(CLASSES)
    mean = np.mean(list(found["classes"].values()))  # of two clips each
    assert found["top1"] == pytest.approx(mean) and 0 <= mean <= 1
    permuted = call(*words, "timesformer_small@{root}/permuted", "--json")
    assert json.loads(permuted.out) == found
    table = call(*words, "timesformer_small@{root}/weights").out
    assert all(name in table for name in CLASSES) and "all 6 clips" in table


def test_accuracy_refuses_classes_of_others(call, root):
    words = ["accuracy", "--model", "timesformer_small@{root}/weights", "--data"]
    words.append("{root}/strangers")
    assert_refused(call, root, words, ["data=", "'dive'", "rename or remove"])
