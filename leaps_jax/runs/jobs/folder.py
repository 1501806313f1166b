"""The folder of a run of jobs.

    rows/000/000123.npz   row 123, once all its copies are done: `videos` (copies, t, h,
                          w, 3) uint8, `labels`, `loss` of each video as it is, `final`
                          (copies, terms) of the last step and the names `terms`; and
                          `row`, `model`, `verifier`, `stimulus`, `label`, `seed`
    parts/000123/         copies of a row that goes through several batches
    jobs.json             settings, versions, digests of the table and of the weights
    shard-1-of-1.json     how far it is, and how long the devices were idle
    failed-1-of-1.jsonl   a line for every row that could not be done, and why

Files appear whole or not at all, and a row is done if its file is there: a run that was
killed goes on with the others.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leaps_jax import files, schemas
from leaps_jax.errors import UserError
from leaps_jax.runs import ownership
from leaps_jax.runs.jobs.table import Row, Shard
from leaps_jax.zoo import checkpoints


class Folder:
    """The folder of a run, as one shard sees it."""

    def __init__(self, path: Path, shard: Shard, identity: Mapping[str, Any]):
        self.path, self.shard = path, shard
        self.suffix = f"{shard.number}-of-{shard.count}"
        self._identity = dict(identity)
        self._listed: tuple[int, set[str]] = (-1, set())
        self._begun: set[int] = set()

    # The run that it holds.

    def open(
        self, weights: Mapping[str, str], facts: Mapping[str, Any] | None = None
    ) -> None:
        """Makes the folder.

        Args:
          weights: digests, {model: digest}.
          facts: more of a new run, for `leaps-jax jobs status`.

        Raises:
          UserError: it is not of this run.
          OSError: it cannot be written.
        """
        out = f"out={str(self.path)!r}"
        if reason := checkpoints.unwritable(self.path):
            raise UserError(f"{out}: {reason}; choose another folder")
        if not (self.path / "jobs.json").exists():
            names = os.listdir(self.path) if self.path.is_dir() else []
            if self.path.is_file() or any(name[0] != "." for name in names):
                raise UserError(f"{out}: exists and is no run; choose another folder")
        ownership.check_links(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.claim(weights, facts)  # first: jobs.json says whose the rest is
        for name in ("rows", "parts"):
            (self.path / name).mkdir(exist_ok=True)
        self._begun = {int(n) for n in os.listdir(self.path / "parts") if n.isdecimal()}

    def claim(
        self, weights: Mapping[str, str], facts: Mapping[str, Any] | None = None
    ) -> None:
        """Notes digests of weights, {model: digest}.

        Raises:
          UserError: the folder is of a run with others, or with other settings.
        """
        out, file = f"out={str(self.path)!r}", self.path / "jobs.json"
        record: dict[str, Any] = {"identity": self._identity, "weights": {}}
        record |= {"versions": ownership.versions(), **(facts or {})}
        with files.locked(self.path / ".jobs.lock", wait=True):
            try:
                if file.exists():
                    remedy = "choose another folder"
                    record = schemas.read(file, schemas.JobsRecord, remedy).model_dump()
            except UserError as error:
                raise UserError(f"{out}: {error}") from None
            held = record["weights"]
            changed = ownership.differences(record["identity"], self._identity)
            others = [n for n in weights if held.get(n, weights[n]) != weights[n]]
            if changed or others:
                remedy = "" if changed else ", or put these weights back"
                changed += [f"weights of {_readable(name)}" for name in others]
                raise UserError(
                    f"{out}: holds another run (it differs in {', '.join(changed)});"
                    f" choose another folder{remedy}"
                )
            if weights.keys() - held.keys() or not file.exists():
                record["weights"] = {**held, **weights}
                files.write_json(file, record)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process off the shard; a killed one lets go of it."""
        with files.locked(self.path / f".{self.suffix}.lock") as free:
            if not free:
                raise UserError(
                    f"out={str(self.path)!r}: another process does shard {self.shard};"
                    " wait for it"
                )
            yield

    # Which rows are done.

    def is_done(self, number: int) -> bool:
        """Rows are asked in order: one listing for a thousand, not a look at each."""
        where = self._place(number)
        if self._listed[0] != number // 1000:
            names = os.listdir(where.parent) if where.parent.is_dir() else []
            self._listed = (number // 1000, set(names))
        if where.name not in self._listed[1]:
            return False
        if number in self._begun:
            self._forget_parts(number)
        return True

    def missing(self, row: Row) -> list[int]:
        """The copies of a row that is not done that are still to be made."""
        if row.number not in self._begun:
            return list(range(row.copies))
        for _, _, path in self._parts(row.number):
            if _damaged(path):  # its copies are made again
                path.unlink()
        have = {c for a, b, _ in self._parts(row.number) for c in range(a, b)}
        return [copy for copy in range(row.copies) if copy not in have]

    def done(self, total: int) -> np.ndarray:
        """(total,) bool: the rows that are done, by one listing of the folder."""
        found = np.zeros(total, bool)
        numbers = list(finished(self.path))
        found[[number for number in numbers if number < total]] = True
        for number in self._begun:
            if number < total and found[number]:
                self._forget_parts(number)
        return found

    # Writing rows.

    def add(
        self, row: Row, copies: list[int], arrays: dict[str, Any], terms: list[str]
    ) -> bool:
        """Writes copies of a row; returns whether all of it is done."""
        if len(copies) == row.copies:
            self._save(row, arrays, terms)
            if row.number in self._begun:  # its parts were damaged, or never written
                self._forget_parts(row.number)
            return True
        where = self._parts_of(row.number)
        where.mkdir(exist_ok=True)
        breaks = np.flatnonzero(np.diff(copies) > 1) + 1
        for run in np.split(np.arange(len(copies)), breaks):
            name = f"{copies[run[0]]:06d}-{copies[run[-1]]:06d}.npz"
            part = {key: values[run] for key, values in arrays.items()}
            _write_arrays(where / name, part | {"terms": terms})
        if sum(end - start for start, end, _ in self._parts(row.number)) < row.copies:
            return False
        self.join(row)
        return True

    def join(self, row: Row) -> None:
        """Makes one file of the parts of a row."""
        parts: list[dict[str, np.ndarray]] = []
        try:
            for _, _, path in self._parts(row.number):
                with path.open("rb") as file, np.load(file) as arrays:
                    parts.append(dict(arrays))
        except FileNotFoundError:
            if self._place(row.number).exists():  # another worker was first
                return
            raise
        terms = [part.pop("terms") for part in parts][0].tolist()
        arrays = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
        self._save(row, arrays, terms)
        self._forget_parts(row.number)

    def _save(self, row: Row, arrays: dict[str, Any], terms: list[str]) -> None:
        where = self._place(row.number)
        if where.exists():  # a shard of another n may have done it meanwhile
            return
        where.parent.mkdir(exist_ok=True)
        facts = {"row": row.number, "seed": row.seed, "terms": terms}
        for name in ("model", "verifier", "stimulus", "label"):
            facts[name] = _readable(getattr(row, name))
        _write_arrays(where, arrays | facts)

    def _place(self, number: int) -> Path:
        return self.path / "rows" / f"{number // 1000:03d}" / f"{number:06d}.npz"

    def _parts_of(self, number: int) -> Path:
        return self.path / "parts" / f"{number:06d}"

    def _parts(self, number: int) -> list[tuple[int, int, Path]]:
        """(first copy, one after the last, path), in order."""
        found = []
        for path in sorted(self._parts_of(number).glob("*-*.npz")):
            if match := re.fullmatch(r"([0-9]{6})-([0-9]{6})\.npz", path.name):
                first, last = map(int, match.groups())
                found.append((first, last + 1, path))
        return found

    def _forget_parts(self, number: int) -> None:
        shutil.rmtree(self._parts_of(number), ignore_errors=True)


def finished(path: Path) -> Iterator[int]:
    """The numbers of the rows that are done in a folder of a run."""
    for name in os.listdir(path / "rows"):
        if name.isdecimal():
            for file in os.listdir(path / "rows" / name):
                if re.fullmatch(r"[0-9]{6,}\.npz", file):
                    yield int(file.removesuffix(".npz"))


def _damaged(path: Path) -> bool:
    """Whether a part cannot be read; a zip has checksums."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return not [arrays[name] for name in arrays.files]
    except MemoryError:
        raise
    except Exception:  # of a damaged zip, of many kinds
        return True


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    files.write(path, lambda file: np.savez(file, **arrays))


def _readable(text: str) -> str:
    """Bytes of a path that are no UTF-8 as a question mark."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
