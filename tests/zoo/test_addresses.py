"""Addresses of weights: what they mean, and names that are attacks."""

import pytest

from leaps_jax.errors import UserError
from leaps_jax.zoo import addresses
from leaps_jax.zoo import load as loading
from leaps_jax.zoo.addresses import HubAddress, WebAddress

HEX = "ab" * 32

MEANT = {
    "hf:me/x3d": HubAddress("me/x3d"),
    "hf://me/x3d": HubAddress("me/x3d"),
    "hf:me/x3d@v1.0": HubAddress("me/x3d", "", "v1.0"),
    "hf:me/x3d/a/X3D_XS.pyth": HubAddress("me/x3d", "a/X3D_XS.pyth"),
    "hf:me/x3d/w.bin@refs/pr/1": HubAddress("me/x3d", "w.bin", "refs/pr/1"),
    "https://host/a/w.pyth?dl=1": WebAddress("https://host/a/w.pyth?dl=1"),
    f"https://host/w#sha256={HEX.upper()}": WebAddress("https://host/w", HEX),
    "http://127.0.0.1:8000/w.pth": WebAddress("http://127.0.0.1:8000/w.pth"),
    "http://[::1]/w.pth": WebAddress("http://[::1]/w.pth"),
    "weights/x3d": None,
    "./hf:me/x3d": None,
    "https": None,
}


@pytest.mark.parametrize("text", MEANT)
def test_what_an_address_means(text):
    assert addresses.parse(text) == MEANT[text]


@pytest.mark.parametrize("text", [text for text in MEANT if MEANT[text]])
def test_an_address_is_written_as_it_is_read(text):
    address = addresses.parse(text)
    assert addresses.parse(str(address)) == address


ATTACKS = [
    "hf:",
    "hf:me",
    "hf:me/",
    "hf:/x3d",
    "hf:../x3d",
    "hf:me/..",
    "hf:me/a..b",
    "hf:me/a--b",
    "hf:me/x/../../etc/passwd",
    "hf:me/x//etc/passwd",
    "hf:me/x/.git/config",
    "hf:me/x/a\\..\\b",
    "hf:me/x/w.pth\n",
    "hf:me/x/w*.pth",
    "hf:me/x/[a].pth",
    "hf:me/x/\x1b[31m.pth",
    "hf:me/x/w.pth@",
    "hf:me/x@../main",
    "hf:me/x@a b",
    "hf:me/x@main?x=1",
    "hf:me/ä",
    "hf:~/x",
    "hf:me/x/" + "a" * 300,
    "http://example.org/w.pth",
    "http://127.0.0.1.example.org/w.pth",
    "http://localhost.example.org/w.pth",
    "https://",
    "https:///etc/passwd",
    "https://me:secret@host/w.pth",
    "https://host:99999/w.pth",
    "https://[::1/w.pth",
    "https://host/w.pth#main",
    "https://host/w.pth#sha256=abc",
    "https://host/a b.pth",
    "https://host/\\w.pth",
    "https://host/w.pth\r\nX: 1",
    "https://h\u00f6st/w.pth",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_names_that_are_attacks_are_refused_without_asking(text, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)  # whoever asks fails
    with pytest.raises(UserError) as error:
        loading.load_model(f"slow_r50@{text}")
    assert str(error.value).isprintable() and "; " in str(error.value)


NAMES = {
    "https://h/a/w.pyth": "w.pyth",
    "https://h/a/%2e%2e%2fw.pth": "w.pth",
    "https://h/..": "checkpoint",
    "https://h/.bashrc": "bashrc",
    "https://h/": "checkpoint",
    "https://h/a%00b;rm.pth": "a_b_rm.pth",
    "https://h/" + "a" * 300 + ".pth": "a" * 116 + ".pth",
}


@pytest.mark.parametrize("url", NAMES)
def test_the_name_of_a_file_is_plain(url):
    assert addresses.parse(url).name == NAMES[url]
