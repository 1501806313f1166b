"""Files appear whole or not at all."""

import os
import secrets
import stat
from pathlib import Path

import pytest

from leaps_jax import files


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, old):
    path = tmp_path / "a.txt"
    if old:
        path.write_text(old)

    def half(file):
        file.write(b"half")
        raise RuntimeError("no space left")

    with pytest.raises(RuntimeError, match="no space left"):
        files.write(path, half)
    assert [p.read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_a_file_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        files.write(tmp_path / "folder", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_files_are_written_together_or_not_at_all(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"

    def full(file):
        assert not one.exists()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        files.write_together({one: "1", two: full})
    assert list(tmp_path.iterdir()) == []
    files.write_together({one: "1", two: "2"})
    assert (one.read_text(), two.read_text()) == ("1", "2")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    [
        "grün",
        "grün".encode(),
        lambda file: file.write("grün".encode()),
        lambda file: Path(file.name).write_bytes("grün".encode()),
    ],
    ids=["text", "bytes", "file", "path"],
)
def test_content_of_every_kind(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_text("a longer text than the new one")
    files.write(path, content)
    assert path.read_text(encoding="utf-8") == "grün"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_is_beside_and_has_the_suffix(tmp_path):
    seen = []
    files.write(tmp_path / "a.gif", lambda file: seen.append(file.name), suffix=".gif")
    (folder, name) = os.path.split(seen[0])
    assert folder == str(tmp_path) and name != "a.gif"
    assert name.startswith(".a.gif.") and name.endswith(".gif")


def test_a_private_file_is_for_the_user_alone(tmp_path):
    before = os.umask(0)
    try:
        files.write(tmp_path / "a", "text", private=True)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files.write(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(secrets, "token_hex", lambda size: "known")
    victim, link = tmp_path / "victim", tmp_path / ".a.txt.known.tmp"
    victim.write_text("precious")
    link.symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.write(tmp_path / "a.txt", "text")
    assert victim.read_text() == "precious" and link.is_symlink()
    assert not (tmp_path / "a.txt").exists()


def test_a_link_is_replaced_and_what_it_names_stays(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "a.txt"
    victim.write_text("precious")
    link.symlink_to(victim)
    files.write(link, "text")
    assert victim.read_text() == "precious"
    assert link.read_text() == "text" and not link.is_symlink()


def test_json(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [1]})
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  1\n ]\n}\n'
    for values in ([{"a": 1}], [], [{"a": 2}, {"a": 3}]):
        files.append_json_lines(tmp_path / "a.jsonl", values)
    expected = '{"a": 1}\n{"a": 2}\n{"a": 3}\n'
    assert (tmp_path / "a.jsonl").read_text() == expected


def test_a_name_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("x" * 250 + ".json")
    files.write(path, "text")
    assert path.read_text() == "text"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_added_where_there_is_none(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise PermissionError("no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.txt"
    assert files.add(path, "first") and path.read_text() == "first"
    assert files.add(path, "second") != links
    assert path.read_text() == ("first" if links else "second")
    assert os.listdir(tmp_path) == ["a.txt"]
