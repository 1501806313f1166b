"""Reads files of `torch.save` without torch, and without running their code.

Since torch 1.6 such a file is a zip of uncompressed records: `<name>/data.pkl`, a
pickle in which tensors refer to storages, `<name>/data/<key>`, the bytes of each, and
`<name>/byteorder`. Before, and still where mmaction2 publishes weights, it is a row of
pickles (a magic number, the version, facts of the system, the tensors, the keys of the
storages), and then each storage: its length in elements, 8 bytes, and its bytes.
"""

import collections
import io
import math
import os
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from leaps_jax.zoo.conversion.pickles import HarmlessUnpickler, Refused

_MAGIC = 0x1950A86A20F9469CFC6C
_KINDS = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
# Tensors may share a storage. All together they may not claim more than this many times
# what the file holds, or a small file could fill the memory.
_MOST_SHARED = 8


class Damaged(Exception):
    """A file that torch did not write, or not to the end."""


class _Storage(NamedTuple):
    key: str
    kind: str
    length: int


class Tensor(NamedTuple):
    """Where the file keeps a tensor: a view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Archive:
    """An open file of `torch.save`.

    Attributes:
      content: what was saved, with a `Tensor` for every tensor.

    >>> with path.open("rb") as file:                           # doctest: +SKIP
    ...     archive = Archive(file)
    ...     archive.array(archive.content["conv.weight"])
    """

    def __init__(self, file: BinaryIO):
        """Reads everything but the storages.

        Raises:
          Refused: the pickle asks for code.
          Damaged: the file is no whole one of `torch.save`.
        """
        self._size = file.seek(0, os.SEEK_END)
        self._held = self._claimed = 0
        self._read: dict[str, np.ndarray] = {}
        file.seek(0)
        try:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            self._bytes = self._open_zip(file) if zipped else self._open_row(file)
        except (Refused, Damaged, MemoryError):
            raise
        except Exception as error:  # a damaged zip or pickle raises almost anything
            raise Damaged(f"it cannot be read: {type(error).__name__}") from None

    def array(self, tensor: Tensor) -> np.ndarray:
        """The values of a tensor; those of one storage share its memory.

        Raises:
          Damaged: it lies outside its storage, or the storage outside the file.
        """
        storage, offset, shape, strides = tensor
        kind = _KINDS[storage.kind]
        elements = math.prod(shape)
        last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if elements and offset + last >= storage.length or elements > storage.length:
            raise Damaged("a tensor is larger than its storage")
        self._claimed += elements * kind.itemsize
        if self._claimed > _MOST_SHARED * self._size:
            raise Damaged("its tensors are larger than the file")
        if storage.key not in self._read:
            size = storage.length * kind.itemsize
            self._held += size
            if self._held > self._size:
                raise Damaged("its storages are larger than the file")
            content = np.frombuffer(self._bytes(storage, size), np.uint8)[:size]
            stored = content.view(kind.newbyteorder(self._order))
            self._read[storage.key] = stored.astype(kind, copy=False)
        held = self._read[storage.key][offset:]
        try:
            return np.lib.stride_tricks.as_strided(
                held, shape, [step * kind.itemsize for step in strides]
            )
        except (ValueError, OverflowError):
            raise Damaged("a tensor of more axes than there are") from None

    def _open_zip(self, file: BinaryIO) -> Callable[[_Storage, int], bytes]:
        archive = zipfile.ZipFile(file)
        (pickled,) = [
            name
            for name in archive.namelist()
            if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        folder = pickled.removesuffix("data.pkl")

        def record(name: str, least: int = 0) -> bytes:
            info = archive.getinfo(folder + name)
            # torch compresses nothing: so a record is as large as the file shows
            if info.compress_type != zipfile.ZIP_STORED:
                raise Damaged(f"{name} is compressed")
            if not least <= info.file_size == info.compress_size <= self._size:
                raise Damaged(f"{name} is not as large as it should be")
            return archive.read(info)

        def storage(storage: _Storage, size: int) -> bytes:
            try:
                return record(f"data/{storage.key}", size)
            except (KeyError, EOFError, zipfile.BadZipFile):
                raise Damaged(f"storage {storage.key} cannot be read") from None

        self._order = "<"
        if folder + "byteorder" in archive.namelist():
            self._order = ">" if record("byteorder") == b"big" else "<"
        self.content = _Unpickler(io.BytesIO(record("data.pkl"))).load()
        return storage

    def _open_row(self, file: BinaryIO) -> Callable[[_Storage, int], bytes]:
        if _Unpickler(file).load() != _MAGIC:
            raise Damaged("it does not begin as files of torch do")
        for _ in ("version", "system"):
            _Unpickler(file).load()
        self._order = "<"  # on every system
        unpickler = _Unpickler(file)
        self.content = unpickler.load()
        places: dict[str, int] = {}
        for key in _Unpickler(file).load():
            kind = _KINDS[unpickler.storages[key].kind]
            count = int.from_bytes(file.read(8), "little")
            places[key] = file.tell()
            end = places[key] + count * kind.itemsize
            if count != unpickler.storages[key].length or end > self._size:
                raise Damaged("it ends within a storage")
            file.seek(end)

        def storage(storage: _Storage, size: int) -> bytes:
            if storage.key not in places:
                raise Damaged(f"storage {storage.key} is missing")
            file.seek(places[storage.key])
            return file.read(size)

        return storage


# Types of elements, which may lie beside the tensors.
_TYPES = (
    *("float64", "float32", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


class _Unpickler(HarmlessUnpickler):
    """Gives a `Tensor` for a tensor."""

    def __init__(self, file: Any):
        super().__init__(file, encoding="latin1")  # Python 2 wrote some of the files
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in (*_KINDS, *_TYPES):
            return name  # a string, for what is only named
        known: dict[tuple[str, str], Any] = {
            ("collections", "Counter"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): self._parameter,
            ("torch", "Size"): tuple,
            ("torch", "device"): self._device,
        }
        if (module, name) in known:
            return known[module, name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        what, kind, key, _, count, *view = pid
        if what != "storage" or kind not in _KINDS or view not in ([], [None]):
            raise Refused(f"a {what} of kind {kind}")
        if type(key) is not str or not _natural(count):
            raise Damaged("a storage without a key or a size")
        storage = _Storage(key, kind, count)
        if self.storages.setdefault(key, storage) != storage:
            raise Damaged(f"storage {key} is of two kinds")
        return storage

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
    ) -> Tensor:
        if type(storage) is not _Storage or not _natural(offset, *shape, *strides):
            raise Damaged("a tensor without a storage, a shape or strides")
        if len(shape) != len(strides):
            raise Damaged("a tensor with other strides than axes")
        return Tensor(storage, offset, tuple(shape), tuple(strides))

    def _parameter(self, tensor: Any, *_: Any) -> Any:
        return tensor

    def _device(self, *_: Any) -> None:
        return None


def _natural(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
