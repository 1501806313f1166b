"""Weight files from servers, each kept whole among the user's caches.

    ~/.cache/leaps_jax/weights/DIGEST OF THE ADDRESS/x3d_xs.pyth

A file that is there is not asked for again. Nothing but the file is asked for, and by
https alone, but for a server on this machine.
"""

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

from leaps_jax import files
from leaps_jax.errors import UserError, printable
from leaps_jax.progress import Steps
from leaps_jax.runtime import multihost
from leaps_jax.version import __version__
from leaps_jax.zoo.addresses import MOST_BYTES, Fetched, WebAddress, is_loopback

MIB = 2**20
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 2**20


def fetch(address: WebAddress) -> Fetched:
    """Downloads a file, unless it is among the user's caches.

    Args:
      address: of the file; with a checksum, a file that has another is refused.

    Raises:
      UserError: there is no such file, it is another one or too large, or it would
        have to be downloaded and `HF_HUB_OFFLINE` is set.
      OSError: the server cannot be reached, the connection was cut, or the file cannot
        be written.
    """
    folder = cache() / hashlib.sha256(address.url.encode()).hexdigest()[:32]
    files.make_private(cache())
    files.make_private(folder)
    path = folder / address.name
    with files.locked(folder / ".lock", wait=True):
        if not _is_held(path, address):
            _download(address, path)
    parts = urllib.parse.urlsplit(address.url)
    page = urllib.parse.urlunsplit(parts._replace(query=""))
    return Fetched(path, WebAddress(address.url, files.sha256(path)), page)


def cache() -> Path:
    """The folder of downloaded files."""
    caches = os.environ.get("XDG_CACHE_HOME", "")
    place = Path(caches) if os.path.isabs(caches) else Path.home() / ".cache"
    return place / "leaps_jax" / "weights"


def is_offline() -> bool:
    """Whether the user has said that no network is to be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def check_room(place: Path, wanted: int) -> None:
    """Raises OSError where a disk has less room than `wanted` bytes."""
    there = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < wanted:
        room = f"{wanted / MIB:.0f} MiB are needed and {free / MIB:.0f} MiB are free"
        reason = f"{os.strerror(errno.ENOSPC)} ({room})"
        raise OSError(errno.ENOSPC, reason, str(place))


def check_size(size: int) -> None:
    """Raises UserError where weights are larger than any that are known."""
    if size > MOST_BYTES:
        most = f"at most {MOST_BYTES / 2**30:.0f} GiB are fetched"
        raise UserError(f"{size / 2**30:.1f} GiB: {most}; download it yourself")


def _is_held(path: Path, address: WebAddress) -> bool:
    if not path.is_file():
        return False
    return not address.sha256 or files.sha256(path) == address.sha256


def _download(address: WebAddress, path: Path) -> None:
    if is_offline():
        raise UserError(
            "HF_HUB_OFFLINE is set and this was not downloaded before; unset it, or"
            " give a file"
        )
    with _told(address), _opened(address) as response:
        kind = response.headers.get_content_type()
        if kind == "text/html":
            raise UserError(
                "there is a page, not a file; give the address of the file, and for"
                " huggingface.co write hf:OWNER/REPO"
            )
        length = response.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else None
        check_size(size or 0)
        check_room(path.parent, size or 0)
        files.write(path, lambda file: _copy(response, file, size, address))


def _copy(
    response: IO[bytes], file: BinaryIO, size: int | None, address: WebAddress
) -> None:
    """Copies a file, and raises where it is not the whole one or another."""
    total = None if size is None else -(-size // MIB)
    digest, done = hashlib.sha256(), 0
    shown = multihost.first()
    steps = Steps("download", total, 0, shown, "MiB", waiting="", brief=True)
    with steps:
        said = "" if size is None else f" ({size / MIB:.1f} MiB)"
        steps.say(f"downloading {printable(address.url)}{said}")
        while chunk := response.read(_CHUNK):
            done += len(chunk)
            check_size(done)
            digest.update(chunk)
            file.write(chunk)
            steps.update(-(-done // MIB))
    if size is not None and done != size:
        reason = f"the connection was cut after {done} of {size} bytes"
        raise OSError(errno.ECONNRESET, reason, address.url)
    if address.sha256 and digest.hexdigest() != address.sha256:
        raise UserError(
            f"its checksum is {digest.hexdigest()}, not that of the address; ask its"
            " author which one is right"
        )


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows redirects of https to https, and on this machine of http to itself."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if old.scheme != new.scheme or (
            new.scheme == "http" and not is_loopback(new.hostname or "")
        ):
            fp.close()
            raise UserError(
                f"the server sends to {printable(newurl, 100)}, which is not"
                f" {old.scheme} as the address is; download the file yourself"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(address: WebAddress) -> Any:
    headers = {"User-Agent": f"leaps_jax/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(address.url, headers=headers)
    opener = urllib.request.build_opener(_SameScheme)
    return opener.open(request, timeout=_TIMEOUT)


@contextlib.contextmanager
def _told(address: WebAddress) -> Iterator[None]:
    """Turns the errors of a connection into one line."""
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            _refuse(address, error.code)
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, ssl.SSLCertVerificationError):
            reason = f"its certificate is refused: {reason.verify_message}"
        _unreachable(address, reason)
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        if isinstance(error, OSError) and error.filename:  # told already
            raise
        _unreachable(address, error)


def _refuse(address: WebAddress, code: int) -> NoReturn:
    if code in (404, 410):
        raise UserError(f"the server has no such file ({code}); check the address")
    if code in (401, 403):
        remedy = "download it with your account and give the file"
        raise UserError(f"the server does not give it to all ({code}); {remedy}")
    if 300 <= code < 400:  # to ftp or a file of this machine, or in a circle
        raise UserError(f"the server sends elsewhere ({code}); download it yourself")
    _unreachable(address, f"the server answers {code}")


def _unreachable(address: WebAddress, reason: object) -> NoReturn:
    said = printable(str(reason) or type(reason).__name__, 150)
    raise OSError(errno.EIO, f"cannot be downloaded ({said})", address.url) from None
