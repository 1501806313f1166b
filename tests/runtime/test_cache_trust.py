"""Only what this user wrote is loaded from disk; all else is one line."""

import errno
import hashlib
import hmac
import os
import pickle
from pathlib import Path

import pytest
from programs import give_away, kept, one_line

from leaps_jax import files
from leaps_jax.runtime import executable_cache


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


class RunsCode:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def evil(tmp_path: Path) -> bytes:
    return pickle.dumps((RunsCode(tmp_path / "proof"), None, None))


FORGED = {
    "unsigned": lambda program: program,
    "with a digest": lambda program: hashlib.sha256(program).digest() + program,
    "signed by another": lambda program: (
        hmac.digest(bytes(32), program, "sha256") + program
    ),
}


@pytest.mark.parametrize("damaged", [cut, flipped, lambda content: b""])
def test_a_damaged_file_is_written_anew(damaged, doubling, tmp_path, capsys):
    assert doubling() == 1
    (path,) = kept(tmp_path)
    path.write_bytes(damaged(path.read_bytes()))
    assert [doubling(), doubling()] == [1, 0]
    assert kept(tmp_path) == [path]
    assert one_line(capsys, str(path), "is not what this user wrote", "compiled anew")


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_program_of_another_never_runs(forged, doubling, tmp_path, capsys):
    assert doubling() == 1
    (path,) = kept(tmp_path)
    path.write_bytes(forged(evil(tmp_path)))
    assert [doubling(), doubling()] == [1, 0]
    assert not (tmp_path / "proof").exists()
    assert one_line(capsys, str(path), "is not what this user wrote", "compiled anew")


def test_one_program_does_not_run_in_place_of_another(doubling, tmp_path, capsys):
    assert doubling() == 1
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    assert doubling(made_of=("doubling", 2)) == 1
    (other,) = set(kept(tmp_path)) - {path}
    other.write_bytes(content)
    assert doubling(made_of=("doubling", 2)) == 1
    assert one_line(capsys, str(other), "is not what this user wrote")


def put_link(path: Path, monkeypatch) -> None:
    path.rename(path.parent.parent / "victim")
    path.symlink_to(path.parent.parent / "victim")


NOT_OWN = {
    "is another user's": give_away,
    "is open to others": lambda path, monkeypatch: path.chmod(0o622),
    "is a link": put_link,
}


@pytest.mark.parametrize("what", NOT_OWN)
def test_a_file_that_is_not_the_users_is_not_parsed(
    what, doubling, tmp_path, monkeypatch, capsys
):
    assert doubling() == 1
    (path,) = kept(tmp_path)
    monkeypatch.setattr(  # only the file counts here
        executable_cache, "_signature", lambda path, key, content: bytes(32)
    )
    path.write_bytes(bytes(32) + evil(tmp_path))
    with monkeypatch.context() as patch:
        NOT_OWN[what](path, patch)
        patch.setattr(files, "make_private", lambda folder: None)
        patch.setattr(executable_cache, "_secret", lambda: b"key")
        assert doubling() == 1
    assert not (tmp_path / "proof").exists()
    assert one_line(capsys, str(path), what, "compiled anew")
    assert not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    if what == "is a link":
        assert (tmp_path / "victim").read_bytes() == bytes(32) + evil(tmp_path)


def test_folder_key_and_files_are_private_under_any_umask(
    doubling, tmp_path, config_home, open_umask
):
    assert [doubling(), doubling()] == [1, 0]
    (path,) = kept(tmp_path)
    key = config_home / "leaps_jax" / "cache.key"
    assert len(key.read_bytes()) == 32 and list(key.parent.iterdir()) == [key]
    for private in (path, key):
        assert private.stat().st_mode & 0o777 == 0o600
    for folder in (path.parent, key.parent, config_home):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_users_have_different_keys(doubling, tmp_path, monkeypatch, capsys):
    assert doubling() == 1
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    assert [doubling(), doubling()] == [1, 0]
    assert one_line(capsys, "is not what this user wrote")


def to_all(path: Path) -> None:
    path.chmod(0o777)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:8])


UNUSABLE = {
    "folder open to others": ("kept", to_all, "is open to others"),
    "key open to others": ("key", to_all, "is open to others"),
    "folder of the key": ("home", to_all, "is open to others"),
    "key cut short": ("key", torn, "is damaged"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_cache_that_cannot_be_used_is_one_line(
    case, doubling, tmp_path, config_home, capsys
):
    assert doubling() == 1
    name, change, what = UNUSABLE[case]
    home = config_home / "leaps_jax"
    path = {"kept": tmp_path / "kept", "home": home, "key": home / "cache.key"}[name]
    change(path)
    assert [doubling(), doubling()] == [1, 1]
    assert one_line(capsys, str(path), what, "delete it")


def test_where_nothing_can_be_written_all_is_compiled(doubling, tmp_path, capsys):
    (tmp_path / "kept").write_text("a file")
    assert [doubling(), doubling()] == [1, 1]
    assert one_line(capsys, str(tmp_path / "kept"), "is no folder", "delete it")


def test_a_disk_that_can_only_be_read_gives_programs(
    doubling, tmp_path, monkeypatch, capsys
):
    assert doubling() == 1

    def refused(*of, **named):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "write", refused)
    monkeypatch.setattr(os, "utime", refused)
    assert doubling() == 0
    assert [doubling(shape=(4,)), doubling(shape=(5,))] == [1, 1]
    assert one_line(capsys, str(tmp_path / "kept"), "Read-only file system")


def test_files_of_others_in_the_folder_stay(doubling, tmp_path, monkeypatch):
    monkeypatch.setattr(executable_cache, "_MOST", 1)
    (tmp_path / "kept").mkdir(mode=0o700)
    mine = tmp_path / "kept" / "thesis.txt"
    mine.write_text("precious")
    os.utime(mine, (0, 0))
    assert [doubling(), doubling(shape=(4,))] == [1, 1]
    assert mine in kept(tmp_path) and len(kept(tmp_path)) == 2
