"""A user of their own for each test, and a program that this user keeps."""

import os

import pytest
from programs import Doubling

from leaps_jax.runtime import executable_cache


@pytest.fixture(autouse=True)
def config_home(tmp_path_factory, monkeypatch):
    """Where the key of the user is; lines of other tests count as not yet said."""
    path = tmp_path_factory.mktemp("user") / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path))
    executable_cache._tell.cache_clear()
    return path


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def doubling(tmp_path):
    return Doubling(tmp_path / "kept")
