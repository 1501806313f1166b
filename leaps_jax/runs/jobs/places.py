"""Where the files of a run are: a folder on a disk, or below an address of a store.

Names are relative, with slashes. Files appear whole or not at all.

>>> place("s3://bucket/videos").names("rows")                    # doctest: +SKIP
['000', '001']
"""

import contextlib
import io
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leaps_jax import files, schemas
from leaps_jax.errors import UserError, last_line

LEASE = 120.0  # seconds after which a lock that is not renewed is nobody's


def place(out: Path | str) -> "Disk | Store":
    """The place of a path, or of an address such as `s3://bucket/folder`.

    Raises:
      UserError: there is no package for such addresses.
    """
    kind, address, path = str(out).partition("://")
    if isinstance(out, Path) or not address:
        return Disk(Path(out))
    return Disk(Path(path)) if kind == "file" else Store(str(out))


class Disk:
    """A folder."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return (self.path / name).exists()

    def names(self, name: str = "") -> list[str]:
        """The names in a folder, none where it is missing."""
        folder = self.path / name
        return os.listdir(folder) if folder.is_dir() else []

    def make(self, name: str = "") -> None:
        """Makes a folder."""
        (self.path / name).mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: files.Content) -> None:
        """Writes or replaces a file."""
        files.write(self.path / name, content)

    def add(self, name: str, content: files.Content) -> bool:
        """Creates a file; returns False if there is one already."""
        return files.add(self.path / name, content)

    def write_json(self, name: str, value: Any) -> None:
        """Writes or replaces a file of JSON."""
        files.write_json(self.path / name, value)

    def read_json(self, name: str, schema: type[schemas.Schema], remedy: str) -> Any:
        """Reads a file; see `schemas.read`."""
        return schemas.read(self.path / name, schema, remedy)

    def add_lines(self, name: str, values: list[Any]) -> None:
        """Adds values to a file, each as a line of JSON."""
        files.append_json_lines(self.path / name, values)

    def flush(self) -> None:
        """Writes what `add_lines` has not."""

    def modified(self, name: str) -> float:
        """When a file was written."""
        return (self.path / name).stat().st_mtime

    def remove(self, name: str) -> None:
        """Removes a file or a folder, where there is one."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Holds a lock; see `files.locked`."""
        with files.locked(self.path / name, wait=wait) as free:
            yield free


class Store:
    """What lies below an address of an object store, through fsspec.

    There are no folders to make, no links, and no locks: a lock is an object that only
    one can make, and that is renewed while it is held.

    Args:
      address: such as `gs://bucket/folder`.

    Raises:
      UserError: there is no package for such addresses.
    """

    def __init__(self, address: str):
        import fsspec

        self.path = address.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(
                self.path, use_listings_cache=False
            )
        except (ImportError, ValueError) as error:
            raise UserError(
                f"out={address!r}: cannot be used ({last_line(str(error))}); install"
                " that, or give a folder"
            ) from None
        self._lines: dict[str, list[str]] = {}
        self._written = 0.0

    def __str__(self) -> str:
        return self.path

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    @contextlib.contextmanager
    def _reached(self, name: str) -> Iterator[None]:
        """Makes errors of a store's package those of a disk."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {last_line(str(error))}"
            raise OSError(None, what, f"{self}/{name}") from None

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        with self._reached(name):
            return self._files.exists(self._at(name))

    def names(self, name: str = "") -> list[str]:
        """The names below a name."""
        with self._reached(name), contextlib.suppress(FileNotFoundError):
            found = self._files.ls(self._at(name), detail=False, refresh=True)
            names = (path.rstrip("/").rpartition("/")[2] for path in found)
            return [each for each in names if each != name.rpartition("/")[2]]
        return []

    def make(self, name: str = "") -> None:
        """Does nothing: a folder of a store is a part of names."""

    def read(self, name: str) -> bytes:
        """The content of an object."""
        with self._reached(name):
            return self._files.cat_file(self._at(name))

    def write(self, name: str, content: files.Content) -> None:
        """Writes or replaces an object."""
        with self._reached(name):
            self._files.pipe_file(self._at(name), _bytes(content))

    def add(self, name: str, content: files.Content) -> bool:
        """Creates an object; returns False if there is one already."""
        made = _bytes(content)
        with self._reached(name):
            try:
                self._files.pipe_file(self._at(name), made, mode="create")
            except Exception:  # of each store its own
                if self.exists(name):
                    return False
                raise
        return True

    def write_json(self, name: str, value: Any) -> None:
        """Writes or replaces an object of JSON."""
        self.write(name, files.as_json(value))

    def read_json(self, name: str, schema: type[schemas.Schema], remedy: str) -> Any:
        """Reads an object as `schemas.read` does a file."""
        where = f"{self}/{name}"
        return schemas.parsed(where, self.read(name), schema, remedy)

    def add_lines(self, name: str, values: list[Any]) -> None:
        """Adds values to an object, each as a line of JSON; see `flush`.

        An object cannot grow: all of it is written again, once a second at most.
        """
        self._lines.setdefault(name, []).extend(json.dumps(v) + "\n" for v in values)
        if time.monotonic() - self._written > 1:
            self.flush()

    def flush(self) -> None:
        """Writes the lines that were added."""
        for name, lines in self._lines.items():
            self.write(name, "".join(lines))
        self._written = time.monotonic()

    def modified(self, name: str) -> float:
        """When an object was written."""
        with self._reached(name):
            return self._files.modified(self._at(name)).timestamp()

    def remove(self, name: str) -> None:
        """Removes an object, or all below a name."""
        with self._reached(name), contextlib.suppress(FileNotFoundError):
            self._files.rm(self._at(name), recursive=True)

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Holds a lock; who was killed holds it for two minutes more.

        Args:
          name: of an object that stands for the lock while it is held.
          wait: until another process lets go of it.

        Yields:
          Whether this process has the lock.
        """
        while not self.add(name, secrets.token_hex(8)):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - self.modified(name) > LEASE:
                    self.remove(name)
                    continue
            if not wait:
                yield False
                return
            time.sleep(0.5)
        over = threading.Event()

        def renew() -> None:
            while not over.wait(LEASE / 6):
                with contextlib.suppress(OSError):  # it is tried again
                    self.write(name, secrets.token_hex(8))

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield True
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(OSError):
                self.remove(name)


def _bytes(content: files.Content) -> bytes:
    if callable(content):
        buffer = io.BytesIO()
        content(buffer)
        return buffer.getvalue()
    return content if isinstance(content, bytes) else content.encode(errors="replace")
