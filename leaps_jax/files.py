"""Files that appear whole or not at all, files that are one's own, and locks.

>>> write(Path("note.txt"), "text")                             # doctest: +SKIP
>>> write(Path("x.npz"), lambda file: np.savez(file, x=x))      # doctest: +SKIP
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

#: Text (UTF-8), bytes, or what writes to an open file, or to that file's `name`.
Content = str | bytes | Callable[[BinaryIO], Any]


def write(
    path: Path,
    content: Content,
    *,
    suffix: str = ".tmp",
    private: bool = False,
) -> None:
    """Writes or replaces a file; no reader ever sees a part of it.

    The content goes to a temporary file in the same folder, which then takes the place
    of the file. If writing fails, the file stays as it was and the temporary one is
    removed. Permissions follow the umask.

    Args:
      path: of the file; its folder must exist.
      content: text (UTF-8), bytes, or a function that writes to an open file, or to
        that file's `name`.
      suffix: of the temporary file, for writers that choose a format by it.
      private: let nobody but the user read or write it, whatever the umask.

    Raises:
      OSError: the file cannot be written, or what `content` raises.
    """
    write_together({path: content}, suffix=suffix, private=private)


def write_together(
    contents: Mapping[Path, Content], *, suffix: str = ".tmp", private: bool = False
) -> None:
    """Writes or replaces files, none of them before all are on the disk; see `write`.

    Args:
      contents: by path.
      suffix: of the temporary files.
      private: let nobody but the user read or write them.

    Raises:
      OSError: a file cannot be written, or what its content raises.
    """
    with contextlib.ExitStack() as written:
        temporaries = {}
        for path, content in contents.items():
            with _named(path):
                temporaries[path] = _temporary(path, content, suffix, private)
            written.enter_context(_removed_on_error(temporaries[path]))
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    for folder in {path.parent for path in contents}:
        _sync_folder(folder)


def _temporary(path: Path, content: Content, suffix: str, private: bool) -> Path:
    """Writes a temporary file beside a path."""
    # The name is random, so that two writers never share a temporary file, and mode x
    # fails where anything has that name, a link too. It is short, however long that of
    # the file is.
    name = f".{path.name[:40]}.{secrets.token_hex(4)}{suffix}"
    temporary = path.with_name(name)
    opener = functools.partial(os.open, mode=0o600 if private else 0o666)
    with open(temporary, "xb", opener=opener) as file, _removed_on_error(temporary):
        if callable(content):
            content(file)
        else:
            # of a name that is no UTF-8, question marks
            raw = (
                content.encode(errors="replace")
                if isinstance(content, str)
                else content
            )
            file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def add(path: Path, content: Content) -> bool:
    """Creates a file as `write` does; returns False if there is one already.

    Where the file system has no hard links, a file that comes meanwhile is replaced.
    """
    temporary = _temporary(path, content, ".tmp", False)
    with _removed_on_error(temporary):
        try:
            os.link(temporary, path)
        except FileExistsError:
            temporary.unlink()
            return False
        except OSError:
            os.replace(temporary, path)
        else:
            temporary.unlink()
    _sync_folder(path.parent)
    return True


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, as `write` does."""
    write(path, as_json(value))


def as_json(value: Any) -> str:
    """A value as indented JSON."""
    return json.dumps(value, indent=1) + "\n"


def append_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Adds values to the end of a file, each as a line of JSON.

    Raises:
      OSError: the file is a link or cannot be written.
    """
    with _named(path), open(path, "a", opener=no_link) as file:
        file.writelines(json.dumps(value) + "\n" for value in values)


def no_link(path: str | os.PathLike[str], flags: int) -> int:
    """An opener for `open`, which raises OSError where the path is a link."""
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link", os.fspath(path)) from None
        raise


def first_link(folder: Path) -> str | None:
    """The path of a link in a folder or in one of its folders, None without one."""
    for path in sorted(folder.iterdir()):
        seen = path.is_dir() and not path.is_symlink() and path.name[0] != "."
        for one in (path, *(path.iterdir() if seen else ())):
            if one.is_symlink():
                return os.path.relpath(one, folder)
    return None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, read again only where the file was touched.

    Raises:
      OSError: it cannot be read.
    """
    s = path.stat()
    touched = (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
    return _sha256(path.absolute(), touched)


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, touched: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_private(folder: Path) -> None:
    """Makes a folder that is missing, and its parents, for the user alone.

    Raises:
      OSError: it cannot be made, or others can write to the one that is there.
    """
    if not folder.exists():
        if not folder.parent.exists():
            make_private(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(folder))
    # A link counts as its target, unless another user made it.
    for status in (folder.lstat(), folder.stat()):
        if not stat.S_ISLNK(status.st_mode) or _is_foreign(status):
            check_own(status, folder)


def read_private(path: Path) -> bytes:
    """Reads a file that is for the user alone.

    Raises:
      FileNotFoundError: there is none.
      OSError: it is a link or no file, is another user's or open to others, or
        cannot be read.
    """

    def opener(name: str, flags: int) -> int:  # nor waits for the writer of a pipe
        return no_link(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=opener) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no file", str(path))
        check_own(status, path, 0o077)
        return file.read()


def check_own(
    status: os.stat_result, path: str | os.PathLike[str], forbidden: int = 0o022
) -> None:
    """Raises PermissionError where a file is another user's or open to others.

    Args:
      status: of the file or folder.
      path: for the error.
      forbidden: permissions that it may not have; by default that others write to it.
    """
    if not hasattr(os, "geteuid"):  # a system with other permissions
        return
    if _is_foreign(status):
        raise PermissionError(errno.EPERM, "is another user's", os.fspath(path))
    if status.st_mode & forbidden:
        raise PermissionError(errno.EPERM, "is open to others", os.fspath(path))


def _is_foreign(status: os.stat_result) -> bool:
    """Whether another user owns a file; root can write to all files anyway."""
    return hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Holds a lock until the block ends or the process dies.

    Args:
      path: of a file that stands for the lock while it is held.
      wait: until another process lets go of it.

    Yields:
      Whether this process has the lock; true where the file system has no locks.

    Raises:
      OSError: the file cannot be made.
    """
    while True:
        with open(path, "a", opener=no_link) as file:
            free = _flock(file, wait)
            if free and not _is_at(path, file):
                continue  # who held it has removed it, and another may have made it
            try:
                yield free
            finally:
                if free:
                    with contextlib.suppress(OSError):
                        path.unlink()
            return


def _flock(file: IO[str], wait: bool) -> bool:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a system or a file system without locks
        pass
    return True


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


@contextlib.contextmanager
def _removed_on_error(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Gives errors the name of a file; that of a full disk has none."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


def _sync_folder(folder: Path) -> None:
    """Puts the file's new name on the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
