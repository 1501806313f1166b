"""Weights of any server: whole, the right ones, and asked for once."""

import errno
import shutil
from collections import namedtuple

import pytest
from servers import serving, sha256

from leaps_jax.errors import UserError
from leaps_jax.zoo import addresses, download, references

X = bytes(range(256)) * 20_000


def moved(to):
    return lambda handler: handler.answer(302, Location=to)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    references.fetch.cache_clear()
    half = len(X) // 2
    routes = [
        (r"/(?:\w+/)?w\.pth", lambda handler: handler.answer(200, X)),
        ("/cut.pth", lambda handler: handler.answer(200, X[:half], length=len(X))),
        ("/page", lambda h: h.answer(200, b"<html>", Content_Type="text/html")),
        ("/closed", lambda handler: handler.answer(403)),
        ("/broken", lambda handler: handler.answer(500)),
        ("/moved.pth", moved("/w.pth")),
        ("/to_file", moved("file:///etc/passwd")),
        ("/to_ftp", moved("ftp://127.0.0.1/w.pth")),
        ("/to_https", moved("https://127.0.0.1/w.pth")),
        ("/to_http", moved("http://example.org/w.pth")),
        ("/circle", moved("/circle")),
        ("/huge", lambda handler: handler.answer(200, b"", length=2**50)),
    ]
    with serving(routes) as found:
        yield found


def fetch(url):
    return references.fetch(addresses.parse(url))


def left(tmp_path):
    """The files among the caches."""
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_a_file_is_downloaded_once(server, tmp_path, capfd):
    url = f"{server.address}/w.pth?dl=1"
    found = fetch(url)
    assert found.path.read_bytes() == X and found.path.name == "w.pth"
    assert str(found.pinned) == f"{url}#sha256={sha256(X)}"
    assert found.page == f"{server.address}/w.pth"
    assert f"downloading {url} (4.9 MiB)" in capfd.readouterr().err
    assert found.path.parent.stat().st_mode & 0o077 == 0, "it is the user's alone"
    references.fetch.cache_clear()
    assert fetch(url) == found
    assert fetch(str(found.pinned)).path == found.path
    assert server.asked == ["GET /w.pth"]
    assert left(tmp_path) == ["w.pth"]
    assert fetch(f"{server.address}/a/w.pth").path != found.path, "another address"


def test_a_redirect_within_the_scheme_is_followed(server):
    assert fetch(f"{server.address}/moved.pth").path.read_bytes() == X


REFUSED = {
    "none": "no such file \\(404\\); check the address",
    "closed": "does not give it to all \\(403\\); download it",
    "page": "there is a page, not a file; give the address of the file",
    "to_file": "sends elsewhere|which is not http",
    "to_ftp": "sends elsewhere|which is not http",
    "to_https": "sends to https://127.0.0.1/w.pth, which is not http",
    "to_http": "sends to http://example.org/w.pth",
    "circle": "sends elsewhere \\(302\\)",
    "huge": "at most 16 GiB are fetched; download it yourself",
    f"w.pth#sha256={'0' * 64}": f"its checksum is {sha256(X)}, not that",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_line_and_leaves_nothing(server, tmp_path, name):
    with pytest.raises(UserError, match=REFUSED[name]) as error:
        fetch(f"{server.address}/{name}")
    assert str(error.value).isprintable()
    assert left(tmp_path) == []


FAILED = {"cut.pth": "cut after 2560000 of 5120000 bytes", "broken": "answers 500"}


@pytest.mark.parametrize("name", FAILED)
def test_what_fails_says_so_and_leaves_nothing(server, tmp_path, name):
    url = f"{server.address}/{name}"
    with pytest.raises(OSError, match=FAILED[name]) as error:
        fetch(url)
    assert error.value.filename == url
    assert left(tmp_path) == []


def test_a_server_that_is_not_there(server, tmp_path):
    with pytest.raises(OSError, match="cannot be downloaded .*refused"):
        fetch("http://127.0.0.1:1/w.pth")


def test_a_size_that_is_not_told_is_limited_too(server, monkeypatch, tmp_path):
    class Endless:
        asked = 0

        def read(self, size):
            self.asked += 1
            assert self.asked < 10
            return bytes(size)

    monkeypatch.setattr(download, "MOST_BYTES", 2**22)
    address = addresses.WebAddress("https://host/w.pth")
    with (tmp_path / "w").open("wb") as file, pytest.raises(UserError, match="at most"):
        download._copy(Endless(), file, None, address)


def test_a_checksum_replaces_a_file_that_was_another(server, tmp_path):
    found = fetch(f"{server.address}/w.pth")
    found.path.write_bytes(b"an older one")
    references.fetch.cache_clear()
    again = fetch(f"{server.address}/w.pth#sha256={sha256(X)}")
    assert again.path == found.path and again.path.read_bytes() == X


def test_offline_only_what_is_there(server, monkeypatch):
    fetch(f"{server.address}/w.pth")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    references.fetch.cache_clear()
    assert fetch(f"{server.address}/w.pth").path.read_bytes() == X
    asked = len(server.asked)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set .*; unset it"):
        fetch(f"{server.address}/b/w.pth")
    assert len(server.asked) == asked


def test_no_room_is_told_first(server, monkeypatch, tmp_path):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**20))
    with pytest.raises(OSError, match="5 MiB are needed and 1 MiB are free") as error:
        fetch(f"{server.address}/w.pth")
    assert error.value.errno == errno.ENOSPC and left(tmp_path) == []


def test_a_cache_that_others_can_write_to_is_refused(server, tmp_path):
    folder = download.cache()
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(OSError, match="open to others"):
        fetch(f"{server.address}/w.pth")
    assert server.asked == []
