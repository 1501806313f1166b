"""The table of jobs: a CSV file that is read row by row, never as a whole."""

import array
import csv
import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from leaps_jax.errors import UserError, nearest

COLUMNS = ("model", "verifier", "stimulus", "label", "copies", "seed")
_REQUIRED = ("model", "label")
_COPIES = 1000  # of a row at most: they end in one file


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table; `line` is where it ends in the file."""

    number: int
    line: int
    model: str
    verifier: str
    stimulus: str
    label: str
    copies: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """The rows `number - 1`, `number - 1 + of` and so on, of which row 0 is the first.

    >>> list(Shard(2, 3).rows(8))
    [1, 4, 7]
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UserError(f"shard={self}: write i/n with i from 1 to n")

    @classmethod
    def parse(cls, text: str | None) -> "Shard":
        """`i/n`; by default, the share of this process."""
        if text is None:
            return cls(jax.process_index() + 1, jax.process_count())
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal()):
            raise UserError(f"shard={text!r}: write i/n with i from 1 to n")
        return cls(int(number), int(count))

    def rows(self, total: int) -> range:
        return range(self.number - 1, total, self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclasses.dataclass(frozen=True)
class Survey:
    """The facts of a table, before its first row is done.

    Attributes:
      rows: how many there are, good and bad.
      digest: of the file.
      models: every one that is named.
      verifiers: every one that is named.
      groups: every pair of a model and a verifier, in their order.
      group: of each row, its place in `groups`.
    """

    rows: int
    digest: str
    models: frozenset[str]
    verifiers: frozenset[str]
    groups: tuple[tuple[str, str], ...]
    group: np.ndarray
    _table: Path
    _header: list[str]
    _ends: np.ndarray  # of the header and of each row, in bytes
    _lines: np.ndarray

    def facts(self) -> dict[str, Any]:
        """What a folder notes of it."""
        return {"table": os.path.abspath(self._table), "rows": self.rows}

    def row(self, number: int) -> Row:
        """Reads a row again.

        Raises:
          UserError: it is no good row.
          OSError: the table cannot be read.
        """
        start, end = self._ends[number : number + 2].tolist()
        self._file.seek(start)
        text = self._file.read(end - start).decode("utf-8", "surrogateescape")
        reader = csv.DictReader(io.StringIO(text, newline=""), self._header)
        return _row(number, self.line(number), next(reader))

    def line(self, number: int) -> int:
        """Where a row ends in the file."""
        return int(self._lines[number])

    @functools.cached_property
    def _file(self) -> IO[bytes]:
        return self._table.open("rb")

    def close(self) -> None:
        """Closes the table."""
        if "_file" in self.__dict__:
            self._file.close()


def survey(table: Path) -> Survey:
    """Reads the table once.

    Raises:
      UserError: it is no table of jobs, or two of its rows are the same job.
    """
    where = f"jobs={str(table)!r}"
    if not os.path.isfile(table) and os.path.exists(table):  # a pipe: <(cat jobs.csv)
        what = "is no regular file, and a table is read more than once"
        raise UserError(f"{where}: {what}; save it to a file")
    groups: dict[tuple[str, str], int] = {}
    # 28 bytes a row
    jobs, lines, ends = (array.array("q") for _ in range(3))
    group = array.array("i")
    reader = _Reader(table)
    for number, line, fields in reader.rows():
        if not number:
            ends.append(reader.header_end)
        model, verifier, stimulus, label, _, seed = _given(fields).values()
        group.append(groups.setdefault((model, verifier), len(groups)))
        jobs.append(hash((model, verifier, stimulus, label, seed or str(number))))
        lines.append(line)
        ends.append(reader.end)
    if not jobs:
        raise UserError(f"{where}: has no rows below the header; add some")
    if same := _repeated(np.array(jobs)):
        first, again = (lines[number] for number in same)
        raise UserError(
            f"{where}: line {again} repeats line {first}, so that their videos would be"
            " the same; remove it, or give it another seed"
        )
    with table.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    models, verifiers = map(frozenset, zip(*groups, strict=True))
    return Survey(
        len(jobs),
        digest,
        models,
        verifiers - {""},
        tuple(groups),
        np.array(group),
        table,
        reader.header,
        np.array(ends),
        np.array(lines),
    )


def _repeated(values: np.ndarray) -> tuple[int, int] | None:
    """Where a value is, and the first place at which one comes again."""
    order = np.argsort(values, kind="stable")
    pairs = np.flatnonzero(values[order[1:]] == values[order[:-1]])
    if not len(pairs):
        return None
    first = pairs[np.argmin(order[pairs + 1])]
    return int(order[first]), int(order[first + 1])


def rows(
    table: Path, shard: Shard, fail: Callable[[int, int, str], None]
) -> Iterator[Row]:
    """The good rows of a shard; the others go to `fail(number, line, reason)`."""
    for number, line, fields in _Reader(table).rows():
        if number % shard.count == shard.number - 1:
            try:
                yield _row(number, line, fields)
            except UserError as error:
                fail(number, line, str(error))


class _Reader:
    """Reads a table.

    Attributes:
      header: names of the columns.
      header_end: where it ends, in bytes.
      end: where the last row that was read ends.
    """

    def __init__(self, table: Path):
        self._table, self.header = table, list[str]()
        self.header_end = self.end = 0

    def rows(self) -> Iterator[tuple[int, int, dict[Any, Any]]]:
        """(number, line, fields) of every row."""
        where, line = f"jobs={str(self._table)!r}", 1
        try:
            # Paths may be of any bytes.
            with self._table.open(
                encoding="utf-8", errors="surrogateescape", newline=""
            ) as file:
                reader = csv.DictReader(self._lines(file), strict=True)
                self.header = [name.strip() for name in reader.fieldnames or ()]
                reader.fieldnames = self.header
                _check_header(where, self.header)
                self.header_end = self.end
                for number, fields in enumerate(reader):
                    line = reader.line_num
                    yield number, line, fields
        except csv.Error as error:
            raise UserError(
                f"{where}: after line {line}: is no CSV ({error}); look for an open"
                " quote"
            ) from None
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{where}: cannot be read ({reason}); give a CSV") from None

    def _lines(self, file: IO[str]) -> Iterator[str]:
        for line in file:
            clean = line if self.end else line.removeprefix("\ufeff")
            self.end += (
                len(line)
                if line.isascii()
                else len(line.encode("utf-8", "surrogateescape"))
            )
            yield clean


def _check_header(where: str, names: list[str]) -> None:
    head = ",".join(COLUMNS)
    if not names:
        raise UserError(f"{where}: is empty; the first line is {head}")
    for name in names:
        if name not in COLUMNS:
            hint = nearest(name, COLUMNS)
            raise UserError(f"{where}: column {name[:40]!r} is unknown; {hint}")
        if names.count(name) > 1:
            raise UserError(f"{where}: two columns are named {name!r}; remove one")
    if missing := [name for name in _REQUIRED if name not in names]:
        raise UserError(
            f"{where}: has no column {' or '.join(missing)}; the first line is {head}"
        )


def _given(fields: dict[Any, Any]) -> dict[str, str]:
    return {name: (fields.get(name) or "").strip() for name in COLUMNS}


def _row(number: int, line: int, fields: dict[Any, Any]) -> Row:
    if None in fields:
        many = len(fields) - 1
        raise UserError(
            f"has more fields than the {many} columns; quote what has commas"
        )
    given = _given(fields)
    for name in _REQUIRED:
        if not given[name]:
            raise UserError(f"{name}='': missing; fill it in")
    numbers = {}
    for name, default, low, high in (
        ("copies", 1, 1, _COPIES),
        ("seed", number, 0, 2**32 - 1),
    ):
        text = given[name] or str(default)
        if not text.isdecimal() or len(text) > 10 or not low <= int(text) <= high:
            what = f"must be a whole number from {low} to {high}"
            raise UserError(f"{name}={given[name]!r}: {what}, or empty for {default}")
        numbers[name] = int(text)
    return Row(number, line, **given | numbers)  # type: ignore[arg-type]
