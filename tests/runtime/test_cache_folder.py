"""Where JAX keeps what it compiled: a folder that is the user's alone, or none."""

import errno
from pathlib import Path

import jax
import pytest
from jax._src import lru_cache
from jax.experimental.compilation_cache import compilation_cache
from programs import give_away, one_line

from leaps_jax.runtime import executable_cache


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """The folder of JAX's cache that a command would choose under an environment."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def choose(**environment):
        for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        given = environment.get("JAX_COMPILATION_CACHE_DIR")  # read when JAX starts
        jax.config.update("jax_compilation_cache_dir", given and str(given))
        executable_cache.use_folder_of_user()
        return executable_cache.folder()

    yield choose
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("given", [None, "", "relative", "."])
def test_the_folder_is_never_one_of_the_current_folder(
    given, chosen, tmp_path, open_umask
):
    environment = {} if given is None else {"XDG_CACHE_HOME": given}
    folder = tmp_path / "home" / ".cache" / "leaps_jax"
    assert chosen(**environment) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    folder.chmod(0o755)  # as earlier versions made it
    assert chosen(**environment) == folder
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_ones_own_is_taken(chosen, tmp_path, capsys):
    assert chosen(XDG_CACHE_HOME=tmp_path) == tmp_path / "leaps_jax"
    own = tmp_path / "own"
    assert chosen(JAX_COMPILATION_CACHE_DIR=own) == own
    assert own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o755)
    (own / "program").touch(0o644)
    (tmp_path / "link").symlink_to(own)
    for path in (own, tmp_path / "link"):
        assert chosen(JAX_COMPILATION_CACHE_DIR=path) == path
    assert chosen(JAX_COMPILATION_CACHE_DIR="") is None
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    assert not capsys.readouterr().err


def test_a_folder_that_others_can_write_to_is_one_line(chosen, tmp_path, capsys):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert chosen(JAX_COMPILATION_CACHE_DIR=shared) is None
    assert one_line(capsys, str(shared), "is open to others", "of your own")
    shared.chmod(0o755)
    (shared / "program").touch()
    (shared / "program").chmod(0o666)
    assert chosen(JAX_COMPILATION_CACHE_DIR=shared) is None
    assert one_line(capsys, str(shared / "program"), "is open to others")
    assert chosen(JAX_COMPILATION_CACHE_DIR="shared") is None
    assert one_line(capsys, "shared", "is no absolute path", "of your own")
    assert chosen(JAX_COMPILATION_CACHE_DIR=shared / "program") is None
    assert one_line(capsys, "program", "is no folder", "of your own")


def test_a_folder_of_another_user_is_one_line(chosen, tmp_path, monkeypatch, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    give_away(theirs, monkeypatch)
    assert chosen(JAX_COMPILATION_CACHE_DIR=theirs) is None
    assert one_line(capsys, str(theirs), "is another user's", "of your own")


def test_a_folder_that_can_only_be_read_is_no_warning_of_jax(
    chosen, tmp_path, monkeypatch, recwarn
):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        folder = chosen(XDG_CACHE_HOME=tmp_path)
        compilation_cache.reset_cache()
        tried = []

        def refused(*of):
            tried.append(of)
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(lru_cache.LRUCache, "put", refused)
        assert jax.jit(lambda x: x + 4321)(1) == 4322
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
        compilation_cache.reset_cache()
    assert tried and folder.is_dir() and not recwarn.list


def test_a_user_without_a_home_is_one_line(chosen, monkeypatch, capsys):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert chosen() is None
    assert one_line(capsys, "home directory", "JAX_COMPILATION_CACHE_DIR")
