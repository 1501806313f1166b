"""Damage that the container of a video shows, and that FFmpeg passes over.

Matroska may have a checksum in each of its parts, which FFmpeg and mkvmerge write and
FFmpeg does not compare (RFC 9559; EBML is RFC 8794). A GIF is a row of blocks, and of a
part that is gone FFmpeg makes a frame (GIF89a). AVI says its size.
"""

import os
import zlib
from pathlib import Path
from typing import BinaryIO

_SHORT = "the file is cut short"
_CHUNK = 2**20
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_CHECKSUM = b"\xbf\x84"  # an element of four bytes, the first of those it covers


def fault(path: Path) -> str | None:
    """Looks for damage, and says what it is; None where there is none to see.

    >>> fault(Path("clip.mkv"))                                  # doctest: +SKIP
    'a part does not fit its checksum'
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(13)
        if head[:4] == b"RIFF":
            short = 8 + int.from_bytes(head[4:8], "little") > end
            return _SHORT if short else None
        if head[:3] == b"GIF":
            return _of_gif(file, head)
        if head[:4] == _EBML.to_bytes(4, "big"):
            file.seek(0)
            return _of_matroska(file, end)
    return None


def _of_gif(file: BinaryIO, head: bytes) -> str | None:
    try:
        _skip_colours(file, head[10])
        while (kind := file.read(1)) != b";":
            if kind == b"!":  # an extension
                file.read(1)
            elif kind == b",":  # an image
                _skip_colours(file, file.read(9)[8])
                file.read(1)
            else:
                return (
                    "a block is of no known kind" if kind else "the file is cut short"
                )
            while size := file.read(1)[0]:
                file.seek(size, os.SEEK_CUR)
    except IndexError:
        return _SHORT
    return None


def _skip_colours(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, os.SEEK_CUR)


def _of_matroska(file: BinaryIO, end: int) -> str | None:
    while found := _element(file):
        name, size = found
        after = file.tell() + size
        if name == _SEGMENT:
            return _of_segment(file, min(end, after))
        if after > end:
            return None
        file.seek(after)
    return None


def _of_segment(file: BinaryIO, end: int) -> str | None:
    while file.tell() < end and (found := _element(file)):
        after = file.tell() + found[1]
        if after > end:
            return _SHORT
        head = file.read(min(found[1], 6))
        if len(head) == 6 and head[:2] == _CHECKSUM:
            checksum = 0
            while chunk := file.read(min(after - file.tell(), _CHUNK)):
                checksum = zlib.crc32(chunk, checksum)
            if checksum != int.from_bytes(head[2:], "little"):
                return "a part does not fit its checksum"
        file.seek(after)
    return None


def _element(file: BinaryIO) -> tuple[int, int] | None:
    """The name and size of the next element; None at the end, or in a live stream."""
    name, size = _number(file, 4), _number(file, 8)
    if name is None or size is None:
        return None
    value, length = size
    value -= 1 << 7 * length
    unknown = (1 << 7 * length) - 1
    return None if value == unknown else (name[0], value)


def _number(file: BinaryIO, most: int) -> tuple[int, int] | None:
    """An EBML integer of variable length, with its marker bit, and its bytes."""
    first = file.read(1)
    length = 9 - first[0].bit_length() if first else 9
    rest = file.read(length - 1)
    if length > most or len(rest) < length - 1:
        return None
    return int.from_bytes(first + rest, "big"), length
