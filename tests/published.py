"""Writes files as `torch.save` does, also wrong ones, without torch."""

import zipfile
from pathlib import Path

import numpy as np

KINDS = {"f4": "FloatStorage", "i8": "LongStorage", "f2": "HalfStorage"}


def text(word: str) -> bytes:
    return b"X" + len(word.encode()).to_bytes(4, "little") + word.encode()


def numbers(values) -> bytes:
    return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"


def tensor(
    key: str, kind: str, length: int, shape, strides, offset: int = 0, extra=b""
) -> bytes:
    """Opcodes of a pickle for a tensor in the storage `key` of so many elements."""
    named = f"ctorch\n{kind}\n".encode()
    storage = b"(" + text("storage") + named + text(key) + text("cpu")
    storage += b"I%d\n" % length + extra + b"tQ"
    place = b"I%d\n" % offset + numbers(shape) + numbers(strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"  # False: no gradient
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + hooks + b"tR"


def pickled(tensors: dict[str, bytes], wrapper: str | None = None) -> bytes:
    items = b"".join(text(name) + value for name, value in tensors.items())
    tree = b"}(" + items + b"u"
    if wrapper:
        tree = b"}(" + text(wrapper) + tree + b"u"
    return b"\x80\x02" + tree + b"."


def write(
    path: Path,
    pickle: bytes,
    storages: dict[str, bytes],
    byteorder: str = "little",
    compression: int = zipfile.ZIP_STORED,
) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickle)
        file.writestr("archive/byteorder", byteorder)
        for key, content in storages.items():
            file.writestr(f"archive/data/{key}", content)


def save(path: Path, arrays: dict[str, np.ndarray], wrapper: str | None = None) -> None:
    """A file as published: `{wrapper: {name: tensor}}`."""
    tensors, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        array = np.asarray(array, order="C")
        strides = [step // array.itemsize for step in array.strides]
        kind = KINDS[array.dtype.str[1:]]
        tensors[name] = tensor(str(key), kind, array.size, array.shape, strides)
        storages[str(key)] = array.tobytes()
    write(path, pickled(tensors, wrapper), storages)
