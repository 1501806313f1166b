"""A small network, without training."""

import pytest

from leaps_jax.zoo import load as loading


@pytest.fixture(scope="module")
def model():
    return loading.initialize("x3d_xs_small", ("left", "right"), frames=4, size=32)
