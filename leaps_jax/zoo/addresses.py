"""Addresses of weights: what may follow the @ of `NAME@WEIGHTS` and is no path.

    hf:OWNER/REPO[/FILE][@REVISION]     of the Hugging Face hub
    https://HOST/FILE[#sha256=HEX]      of any server

Asks nobody. A name in an address becomes a name of a file here, so what could lead out
of a folder is refused.
"""

import dataclasses
import ipaddress
import re
import urllib.parse
from pathlib import Path

from leaps_jax.errors import UserError

#: Bytes of weights that are downloaded at most: those of the largest model of the zoo
#: fill 2.4 GB, and a file with the state of its optimiser three times as much.
MOST_BYTES = 2**34

_OWNER = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_PART = re.compile(r"[\w+=-][\w.+=-]{0,199}", re.ASCII)
_REVISION = re.compile(r"[\w][\w.+/-]{0,199}", re.ASCII)
_FORM = "write hf:OWNER/REPO, hf:OWNER/REPO/FILE or hf:OWNER/REPO@REVISION"


@dataclasses.dataclass(frozen=True)
class HubAddress:
    """Weights on the Hugging Face hub.

    Attributes:
      repo: "owner/name".
      path: of a file or folder in it; "" for the repository itself.
      revision: a branch, a tag or a commit; "" for the main branch.
    """

    repo: str
    path: str = ""
    revision: str = ""

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        return f"hf:{self.repo}{path}" + (f"@{self.revision}" if self.revision else "")


@dataclasses.dataclass(frozen=True)
class WebAddress:
    """A file on a server.

    Attributes:
      url: without a fragment.
      sha256: of the file, 64 hexadecimal digits; "" where it is not told.
    """

    url: str
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.url}#sha256={self.sha256}" if self.sha256 else self.url

    @property
    def name(self) -> str:
        """The last part of the path, as a name for a file."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path)
        name = re.sub(r"[^\w.+=-]", "_", path.rpartition("/")[2], flags=re.ASCII)
        return name[-120:].lstrip(".") or "checkpoint"


Address = HubAddress | WebAddress


@dataclasses.dataclass(frozen=True)
class Fetched:
    """Weights that were fetched.

    Attributes:
      path: of the file or folder on this machine.
      pinned: the address that means these bytes for ever, with commit or checksum.
      page: where people find them, without a query.
    """

    path: Path
    pinned: Address
    page: str


def parse(weights: str) -> Address | None:
    """The address that is written, None where a path is.

    Raises:
      UserError: it is no address of these kinds, or holds what no address should.

    >>> parse("hf:google/vivit-b-16x2-kinetics400@main").repo
    'google/vivit-b-16x2-kinetics400'
    >>> parse("https://host/x3d_xs.pyth").name
    'x3d_xs.pyth'
    >>> parse("weights/x3d_xs.pyth")
    """
    if weights.startswith("hf:"):
        return _hub(weights.removeprefix("hf:").removeprefix("//"))
    if re.match("https?://", weights, re.IGNORECASE):
        return _web(weights)
    return None


def safe_path(path: str) -> bool:
    """Whether a path in a repository is one here, too: within its folder, and plain.

    >>> safe_path("variables/d/1f"), safe_path("../x"), safe_path("a//b")
    (True, False, False)
    """
    return all(map(_PART.fullmatch, path.split("/")))


def _hub(text: str) -> HubAddress:
    place, at, revision = text.partition("@")
    owner, _, rest = place.partition("/")
    name, slash, path = rest.partition("/")
    for part in (owner, name):
        if not _OWNER.fullmatch(part) or ".." in part or "--" in part:
            raise UserError(f"{part!r}: no name of an owner or a repository; {_FORM}")
    if slash and not safe_path(path):
        raise UserError(
            f"{path!r}: no path of a file (letters, digits and ._+=- alone, no part"
            f" begins with a dot); {_FORM}"
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UserError(f"{revision!r}: no branch, tag or commit; {_FORM}")
    return HubAddress(f"{owner}/{name}", path, revision)


def _web(text: str) -> WebAddress:
    if not text.isascii() or not text.isprintable() or re.search(r"[\s\\]", text):
        raise UserError("the address has odd characters; write them as %XX")
    try:
        parts = urllib.parse.urlsplit(text)
        host, _ = parts.hostname, parts.port  # both may be refused
    except ValueError as error:
        raise UserError(f"no address ({error}); write https://HOST/FILE") from None
    if not host:
        raise UserError("the address has no host; write https://HOST/FILE")
    if parts.scheme == "http" and not is_loopback(host):
        raise UserError("http can be changed on its way; write https")
    if "@" in parts.netloc:
        raise UserError(
            "the address holds a user, and addresses are recorded; download the file"
            " yourself"
        )
    fragment = parts.fragment
    found = re.fullmatch("sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not found:
        raise UserError(f"#{fragment}: is no checksum; write #sha256= and 64 digits")
    url = urllib.parse.urlunsplit(parts._replace(fragment=""))
    return WebAddress(url, found[1].lower() if found else "")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine.

    >>> is_loopback("127.0.0.1"), is_loopback("127.0.0.1.example.org")
    (True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
