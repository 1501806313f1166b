"""The folder of a run of jobs.

    rows/000/000123.npz   row 123, once all its copies are done: `videos` (copies, t, h,
                          w, 3) uint8, `labels`, `final` (copies, terms) of the last
                          step and the names `terms`; and `row`, `model`, `verifier`,
                          `stimulus`, `label`, `seed`
    parts/000123/         copies of a row that goes through several batches
    jobs.json             settings, versions, digests of the table and of the weights
    shard-1-of-1.json     how far it is, and how long the devices were idle
    failed-1-of-1.jsonl   a line for every row that could not be done, and why

Files appear whole or not at all, and a row is done if its file is there: a run that was
killed goes on with the others.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leaps_jax import schemas
from leaps_jax.errors import UserError
from leaps_jax.runs import ownership
from leaps_jax.runs.jobs import places
from leaps_jax.runs.jobs.table import Row, Shard
from leaps_jax.zoo import checkpoints


class Folder:
    """The folder of a run, as one shard sees it."""

    def __init__(self, path: Path | str, shard: Shard, identity: Mapping[str, Any]):
        self.place, self.shard = places.place(path), shard
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
        out, where = f"out={str(self.place)!r}", self.place
        if isinstance(where, places.Disk):
            if reason := checkpoints.unwritable(where.path):
                raise UserError(f"{out}: {reason}; choose another folder")
            if where.path.is_file():
                raise UserError(f"{out}: exists and is no run; choose another folder")
            ownership.check_links(where.path)
        if not where.exists("jobs.json"):
            if any(name[0] != "." for name in where.names()):
                raise UserError(f"{out}: exists and is no run; choose another folder")
        where.make()
        self.claim(weights, facts)  # first: jobs.json says whose the rest is
        for name in ("rows", "parts"):
            where.make(name)
        self._begun = {int(n) for n in where.names("parts") if n.isdecimal()}

    def claim(
        self, weights: Mapping[str, str], facts: Mapping[str, Any] | None = None
    ) -> None:
        """Notes digests of weights, {model: digest}.

        Raises:
          UserError: the folder is of a run with others, or with other settings.
        """
        held = self._held(weights)
        if held is not None and not weights.keys() - held["weights"].keys():
            return  # without the lock: there may be hundreds of workers
        with self.place.locked(".jobs.lock", wait=True):
            record = self._held(weights) or {
                "identity": self._identity,
                "weights": {},
                "versions": ownership.versions(),
                **(facts or {}),
            }
            record["weights"] = {**record["weights"], **weights}
            self.place.write_json("jobs.json", record)

    def _held(self, weights: Mapping[str, str]) -> dict[str, Any] | None:
        """What the folder notes, if anything; refuses what is of another run."""
        out = f"out={str(self.place)!r}"
        if not self.place.exists("jobs.json"):
            return None
        try:
            remedy = "choose another folder"
            found = self.place.read_json("jobs.json", schemas.JobsRecord, remedy)
        except UserError as error:
            raise UserError(f"{out}: {error}") from None
        held = found.weights
        changed = ownership.differences(found.identity, self._identity)
        others = [n for n in weights if held.get(n, weights[n]) != weights[n]]
        if changed or others:
            remedy = "" if changed else ", or put these weights back"
            changed += [f"weights of {_readable(name)}" for name in others]
            raise UserError(
                f"{out}: holds another run (it differs in {', '.join(changed)});"
                f" choose another folder{remedy}"
            )
        return found.model_dump()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process off the shard; a killed one lets go of it."""
        with self.place.locked(f".{self.suffix}.lock") as free:
            if not free:
                raise UserError(
                    f"out={str(self.place)!r}: another process does shard {self.shard};"
                    " wait for it"
                )
            yield

    # Which rows are done.

    def is_done(self, number: int) -> bool:
        """Rows are asked in order: one listing for a thousand, not a look at each."""
        folder, _, name = _file_of(number).rpartition("/")
        if self._listed[0] != number // 1000:
            self._listed = (number // 1000, set(self.place.names(folder)))
        if name not in self._listed[1]:
            return False
        if number in self._begun:
            self._forget_parts(number)
        return True

    def missing(self, row: Row) -> list[int]:
        """The copies of a row that is not done that are still to be made."""
        if row.number not in self._begun:
            return list(range(row.copies))
        for _, _, name in self._parts(row.number):
            if self._damaged(name):  # its copies are made again
                self.place.remove(name)
        have = {c for a, b, _ in self._parts(row.number) for c in range(a, b)}
        return [copy for copy in range(row.copies) if copy not in have]

    def done(self, total: int) -> np.ndarray:
        """(total,) bool: the rows that are done, by one listing of the folder."""
        found = np.zeros(total, bool)
        numbers = list(finished(self.place))
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
        where = _parts_of(row.number)
        self.place.make(where)
        breaks = np.flatnonzero(np.diff(copies) > 1) + 1
        for run in np.split(np.arange(len(copies)), breaks):
            name = f"{copies[run[0]]:06d}-{copies[run[-1]]:06d}.npz"
            part = {key: values[run] for key, values in arrays.items()}
            self._write(f"{where}/{name}", part | {"terms": terms}, self.place.write)
        if sum(end - start for start, end, _ in self._parts(row.number)) < row.copies:
            return False
        self.join(row)
        return True

    def join(self, row: Row) -> None:
        """Makes one file of the parts of a row."""
        parts: list[dict[str, np.ndarray]] = []
        try:
            parts += [self._read(name) for _, _, name in self._parts(row.number)]
        except FileNotFoundError:
            if self.place.exists(_file_of(row.number)):  # another worker was first
                return
            raise
        terms = [part.pop("terms") for part in parts][0].tolist()
        arrays = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
        self._save(row, arrays, terms)
        self._forget_parts(row.number)

    def _save(self, row: Row, arrays: dict[str, Any], terms: list[str]) -> None:
        where = _file_of(row.number)
        if self.place.exists(where):  # a shard of another n may have done it meanwhile
            return
        self.place.make(where.rpartition("/")[0])
        facts = {"row": row.number, "seed": row.seed, "terms": terms}
        for name in ("model", "verifier", "stimulus", "label"):
            facts[name] = _readable(getattr(row, name))
        self._write(where, arrays | facts, self.place.add)

    def _parts(self, number: int) -> list[tuple[int, int, str]]:
        """(first copy, one after the last, name), in order."""
        found, where = [], _parts_of(number)
        for name in sorted(self.place.names(where)):
            if match := re.fullmatch(r"([0-9]{6})-([0-9]{6})\.npz", name):
                first, last = map(int, match.groups())
                found.append((first, last + 1, f"{where}/{name}"))
        return found

    def _forget_parts(self, number: int) -> None:
        self.place.remove(_parts_of(number))

    def _write(
        self, name: str, arrays: dict[str, Any], write: Callable[..., Any]
    ) -> None:
        write(name, lambda file: np.savez(file, **arrays))

    def _read(self, name: str) -> dict[str, np.ndarray]:
        with np.load(io.BytesIO(self.place.read(name))) as arrays:
            return dict(arrays)

    def _damaged(self, name: str) -> bool:
        """Whether a part cannot be read; a zip has checksums."""
        try:
            return not self._read(name)
        except MemoryError:
            raise
        except Exception:  # of a damaged zip, of many kinds
            return True


def _file_of(number: int) -> str:
    return f"rows/{number // 1000:03d}/{number:06d}.npz"


def _parts_of(number: int) -> str:
    return f"parts/{number:06d}"


def finished(place: places.Disk | places.Store) -> Iterator[int]:
    """The numbers of the rows that are done in the place of a run."""
    for folder in place.names("rows"):
        if folder.isdecimal():
            for name in place.names(f"rows/{folder}"):
                if re.fullmatch(r"[0-9]{6,}\.npz", name):
                    yield int(name.removesuffix(".npz"))


def _readable(text: str) -> str:
    """Bytes of a path that are no UTF-8 as a question mark."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
