"""Large runs: a table of jobs, in batches that are filled across its rows.

The table is a CSV file with the columns of `COLUMNS`, read as a stream; row 0 is the
first below the header. The folder of a run holds

    rows/000/000123.npz   row 123, once all its copies are done: `videos` (copies, t, h,
                          w, 3) uint8, `labels`, `loss` of each video as it is, `final`
                          (copies, terms) of the last step and the names `terms`; and
                          `row`, `model`, `verifier`, `stimulus`, `label`, `seed`
    parts/000123/         copies of a row that goes through several batches
    jobs.json             settings, versions, and the digest of the table
    shard-1-of-1.json     how far it is, and how long the devices were idle
    failed-1-of-1.jsonl   a line for every row that could not be done, and why

Files appear whole or not at all, and a row is done if its file is there: a run that was
killed goes on with the others. A row alone decides its videos, which are those of one
`synthesize` with its seed and copies, up to rounding; with a verifier, whose moments
are those of a batch, so do the rows that share its batch.

Three threads work at a time: one reads, decodes and places the next batches, one runs
the devices, one writes what is finished.
"""

import collections
import contextlib
import csv
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax import (
    checkpoints,
    loading,
    objectives,
    parallel,
    runs,
    stimuli,
    synthesis,
    taps,
)
from leaps_jax import video as video_lib
from leaps_jax.config import Config, ModelSpec
from leaps_jax.errors import UserError, nearest
from leaps_jax.progress import Steps, interruptible
from leaps_jax.taps import Model

COLUMNS = ("model", "verifier", "stimulus", "label", "copies", "seed")
_REQUIRED = ("model", "label")
_OPEN = 4  # models, with their verifiers, in memory at a time
_COPIES = 1000  # of a row at most: they end in one file
_SHOWN = 10  # failed rows named at the end


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all rows of a run have in common; see `leaps-jax synthesize --help`."""

    method: str
    config: Config
    frames: int | None = None
    size: int | None = None
    stride: int | None = None
    short: str = "refuse"
    dtype: str | None = None
    remat: bool = False
    data_dir: str | None = None

    def check(self) -> None:
        """Raises UserError for what would fail in every row."""
        if self.method not in objectives.METHODS:
            hint = nearest(self.method, objectives.METHODS)
            raise UserError(f"method={self.method!r}: unknown; {hint}")
        loading.compute_type(self.dtype)
        video_lib.sample_frames(1, 1, 1, short=self.short)
        for name in ("frames", "size", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class Shard:
    """The rows `number`, `number + of` and so on; numbers count from 1.

    >>> list(Shard(2, 3).rows(8))
    [1, 4, 7]
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UserError(f"shard={self}: write i/n with i from 1 to n")

    @classmethod
    def parse(cls, text: str | None) -> "Shard":
        """`i/n`; by default, the share of this process."""
        if text is None:
            return cls(jax.process_index() + 1, jax.process_count())
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal()):
            raise UserError(f"shard={text!r}: write i/n with i from 1 to n")
        return cls(int(number), int(of))

    def rows(self, count: int) -> range:
        return range(self.number - 1, count, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


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


def execute(
    table: Path,
    out: Path,
    settings: Settings,
    batch: int,
    shard: Shard | None = None,
) -> dict[str, Any]:
    """Does the rows of a table that are not done yet.

    Args:
      table: the CSV file.
      out: folder of the run; made if missing.
      settings: of all rows; a folder with others is refused.
      batch: videos at a time, on all devices of this process.
      shard: the rows to do.

    Returns:
      The content of `shard-i-of-n.json`: its `status` is "finished", or "stopped" after
      Ctrl-C; `failed` counts the rows that could not be done and `errors` names some.

    Raises:
      UserError: the table is none, or the folder holds something else.
    """
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    settings.check()
    shard = shard or Shard.parse(None)
    survey = _survey(table)
    folder = _Folder(out, shard)
    folder.open(_identity(survey, settings, batch))
    try:
        with folder.locked():
            return _run(table, survey.rows, folder, settings, batch)
    except OSError as error:
        raise _unwritable(out, error) from None


def _run(
    table: Path, count: int, folder: "_Folder", settings: Settings, size: int
) -> dict[str, Any]:
    journal = _Journal(folder, len(folder.shard.rows(count)))
    rows = _rows(table, folder.shard, journal)
    ready = _decoded(_undone(rows, folder, journal), settings, journal)
    batches = _placed(_batches(ready, size), size, journal)
    writer = _Writer(folder, journal)
    with Steps("jobs", journal.total, unit="rows") as steps, interruptible() as stop:
        with writer, _ahead(batches, stop) as placed:
            for one in placed:
                _optimise(one, size, writer, journal, stop)
                journal.save("running")
                steps.update(journal.over, {"idle %": 100 * journal.idle()})
        steps.update(journal.over, {"idle %": 100 * journal.idle()})
    record = journal.save("stopped" if stop else "finished")
    return record | {"errors": [what for _, what in sorted(journal.errors)]}


def _optimise(
    placed: "_Placed | None",
    size: int,
    writer: "_Writer",
    journal: "_Journal",
    stop: list[bool],
) -> None:
    """Runs one batch, and again without the rows that were not finite."""
    while placed is not None:
        group, items, again = placed.group, placed.items, None
        journal.begin()
        try:
            for snapshot in group.engine.run(size, *placed.on_devices()):
                last = snapshot
                if stop:
                    return
        except synthesis.NotFiniteError as error:
            journal.end()
            bad = {items[i].row for i in error.videos if i < len(items)}
            bad = bad or {item.row for item in items}
            for row in bad:
                journal.fail(row.number, row.line, str(error))
            items = [item for item in items if item.row not in bad]
            if items:
                again = group.place(items, size)
        except jax.errors.JaxRuntimeError as error:
            journal.end()
            group.give_up(error, items, journal)
        else:
            journal.end()
            final = last.placed
            assert final is not None
            writer.submit(
                items,
                _as_bytes(final.best_videos, group.model.spec),
                final.best_loss,
                {name: values[-1] for name, values in last.metrics.items()},
            )
        placed = again


@functools.partial(jax.jit, static_argnums=1)
def _as_bytes(videos: jax.Array, spec: ModelSpec) -> jax.Array:
    pixels = video_lib.denormalize(videos, spec)
    return jnp.rint(jnp.clip(pixels, 0, 1) * 255).astype(jnp.uint8)


# The table.


@dataclasses.dataclass(frozen=True)
class _Survey:
    rows: int
    digest: str
    verified: bool


def _survey(table: Path) -> _Survey:
    """Reads the table once, to refuse at the start what is no table."""
    count, verified, digest = 0, False, hashlib.sha256()
    for _, _, fields in _fields(table):
        count += 1
        verified = verified or bool(fields.get("verifier"))
    if not count:
        raise UserError(f"jobs={str(table)!r}: has no rows below the header; add some")
    with table.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return _Survey(count, digest.hexdigest(), verified)


def _fields(table: Path) -> Iterator[tuple[int, int, dict[Any, Any]]]:
    """(number, line, fields) of every row."""
    where, line = f"jobs={str(table)!r}", 1
    try:
        # Paths may be of any bytes.
        with table.open(
            encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as f:
            reader = csv.DictReader(f, strict=True)
            _check_header(where, [name.strip() for name in reader.fieldnames or ()])
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            for number, fields in enumerate(reader):
                line = reader.line_num
                yield number, line, fields
    except csv.Error as error:
        raise UserError(
            f"{where}: after line {line}: is no CSV ({error}); look for an open quote"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{where}: cannot be read ({reason}); give a CSV") from None


def _check_header(where: str, names: list[str]) -> None:
    for name in names:
        if name not in COLUMNS:
            hint = nearest(name, COLUMNS)
            raise UserError(f"{where}: column {name!r} is unknown; {hint}")
        if names.count(name) > 1:
            raise UserError(f"{where}: two columns are named {name!r}; remove one")
    if missing := [name for name in _REQUIRED if name not in names]:
        head = ",".join(COLUMNS)
        raise UserError(
            f"{where}: has no column {' or '.join(missing)}; the first line is {head}"
        )


def _rows(table: Path, shard: Shard, journal: "_Journal") -> Iterator[Row]:
    """The good rows of a shard."""
    for number, line, fields in _fields(table):
        if number % shard.of == shard.number - 1:
            try:
                yield _row(number, line, fields)
            except UserError as error:
                journal.fail(number, line, str(error))


def _row(number: int, line: int, fields: dict[Any, Any]) -> Row:
    if None in fields:
        many = len(fields) - 1
        raise UserError(
            f"has more fields than the {many} columns; quote what has commas"
        )
    given = {name: (fields.get(name) or "").strip() for name in COLUMNS}
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


def _undone(
    rows: Iterable[Row], folder: "_Folder", journal: "_Journal"
) -> Iterator[tuple[Row, list[int]]]:
    """Rows with the copies that they lack."""
    for row in rows:
        if folder.is_done(row.number):
            journal.skip()
        elif missing := folder.missing(row):
            yield row, missing
        else:  # killed after its last part
            folder.join(row)
            journal.skip()


# Models, stimuli and batches.


@dataclasses.dataclass(frozen=True)
class _Item:
    """One video: a copy of a row."""

    row: Row
    copy: int
    label: int
    stimulus: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A batch on the devices; what is there can be run once."""

    group: "_Group"
    items: list[_Item]
    held: list[Any]

    def on_devices(self) -> tuple[synthesis.State, synthesis.Batch]:
        return self.held.pop()


class _Group:
    """The rows of one model and verifier."""

    def __init__(self, row: Row, settings: Settings):
        load = functools.partial(
            loading.load_model, dtype=settings.dtype, remat=settings.remat
        )
        model = load(row.model)
        changes = {
            name: getattr(settings, name)
            for name in ("frames", "size", "stride")
            if getattr(settings, name) is not None
        }
        spec = dataclasses.replace(model.spec, **changes)
        self.model = dataclasses.replace(model, spec=spec)
        synthesis.check_input(self.model)
        self.config = settings.config
        self.objective = objectives.METHODS[settings.method](self.config)
        self.verifier: Model | None = None
        if row.verifier and "verifier" in self.objective.uses:
            self.verifier = load(row.verifier, argument="verifier")
            try:
                taps.target_moments(self.verifier)
            except UserError:
                raise UserError(
                    f"verifier={row.verifier!r}: has no batch norm and no stored"
                    " statistics; store some with `convert --moments DIR`"
                ) from None
        elif "verifier" in self.objective.uses:
            self.objective = self.objective.without("diversity")
        self.primed = "stimulus" in self.objective.uses
        self.primed |= self.config.init == "stimulus"
        self.broken = ""

    @functools.cached_property
    def engine(self) -> synthesis.Engine:
        return synthesis.Engine(
            self.model,
            self.verifier,
            self.objective,
            self.config,
            jax.local_devices(),
        )

    def place(self, items: list[_Item], size: int) -> _Placed:
        """Fills a batch up to its size with copies of weight 0."""
        index = np.minimum(np.arange(size), len(items) - 1)
        of = [items[i] for i in index]
        pixels = [i.stimulus for i in of if i.stimulus is not None]
        state, batch = self.engine.start(
            np.array([i.label for i in of], np.int32),
            np.arange(size) < len(items),
            np.stack(pixels) if pixels else None,
            seed=np.array([i.row.seed for i in of], np.uint32),
            index=np.array([i.copy for i in of]),
        )
        self.engine.compile(state, batch)
        return _Placed(self, items, [(state, batch)])

    def give_up(
        self, error: Exception, items: list[_Item], journal: "_Journal"
    ) -> None:
        """No row of a model that does not fit the devices, say, is tried again."""
        self.broken = f"model={self.model.spec.name}: {_in_a_line(error)}"
        for item in items:
            journal.fail(item.row.number, item.row.line, self.broken)


def _in_a_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "RESOURCE_EXHAUSTED" in str(error):
        return "does not fit the memory of the device; lower --batch, or use --remat"
    return ": ".join([type(error).__name__, *lines[:1]])


def _placed(
    batches: Iterable[tuple[_Group, list[_Item]]], size: int, journal: "_Journal"
) -> Iterator[_Placed]:
    for group, items in batches:
        try:
            placed = group.place(items, size)
        except Exception as error:  # hours of work must not end with one model
            group.give_up(error, items, journal)
        else:
            yield placed


def _decoded(
    rows: Iterable[tuple[Row, list[int]]], settings: Settings, journal: "_Journal"
) -> Iterator[tuple["_Group", list[_Item]]]:
    """Rows in order with their stimuli, a few of which are decoded ahead."""
    groups: collections.OrderedDict[tuple[str, str], _Group | UserError]
    groups = collections.OrderedDict()
    waiting: collections.deque[tuple[Row, list[int], _Group, int, Future]]
    waiting = collections.deque()
    workers = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers, "decode")

    def oldest() -> Iterator[tuple[_Group, list[_Item]]]:
        row, copies, group, label, future = waiting.popleft()
        try:
            clip = future.result()
        except UserError as error:
            journal.fail(row.number, row.line, str(error))
        except Exception as error:  # hours of work must not end with one clip
            reason = f"stimulus={row.stimulus!r}: {_in_a_line(error)}"
            journal.fail(row.number, row.line, reason)
        else:
            yield group, [_Item(row, copy, label, clip) for copy in copies]

    try:
        for row, copies in rows:
            try:
                group = _group(groups, row, settings)
                if group.broken:
                    raise UserError(group.broken)
                label = group.model.spec.label_index(row.label)
                if group.primed and not row.stimulus:
                    raise UserError(
                        f"stimulus='': missing; --method {settings.method} starts from"
                        " or is primed by one"
                    )
            except UserError as error:
                journal.fail(row.number, row.line, str(error))
                continue
            except ValueError:  # of int()
                reason = f"label={row.label!r}: is no class; write its name or index"
                journal.fail(row.number, row.line, reason)
                continue
            future = pool.submit(_decode, row, group, settings)
            waiting.append((row, copies, group, label, future))
            if len(waiting) > 2 * workers:
                yield from oldest()
        while waiting:
            yield from oldest()
    finally:
        pool.shutdown(cancel_futures=True)


def _group(
    groups: "collections.OrderedDict[tuple[str, str], _Group | UserError]",
    row: Row,
    settings: Settings,
) -> _Group:
    key = (row.model, row.verifier)
    if key not in groups:
        try:
            groups[key] = _Group(row, settings)
        except UserError as error:
            groups[key] = error
        except Exception as error:  # hours of work must not end with one model
            groups[key] = UserError(f"model={row.model!r}: {_in_a_line(error)}")
        if len(groups) > _OPEN:
            groups.popitem(last=False)
    groups.move_to_end(key)
    found = groups[key]
    if isinstance(found, UserError):
        raise UserError(str(found))
    return found


def _decode(row: Row, group: _Group, settings: Settings) -> np.ndarray | None:
    if not group.primed:
        return None
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(RuntimeError):  # renderings must not wait for the GPU
            stack.enter_context(jax.default_device(jax.local_devices(backend="cpu")[0]))
        return stimuli.load_stimulus(
            row.stimulus,
            group.model.spec,
            short=settings.short,
            data_dir=settings.data_dir,
        )


def _batches(
    ready: Iterable[tuple[_Group, list[_Item]]], size: int
) -> Iterator[tuple[_Group, list[_Item]]]:
    """Fills batches, each of one group; only the last of a group can be smaller."""
    waiting: collections.OrderedDict[_Group, list[_Item]] = collections.OrderedDict()
    for group, items in ready:
        if group not in waiting and len(waiting) == _OPEN:
            other, left = waiting.popitem(last=False)
            if left:
                yield other, left
        have = waiting.pop(group, []) + items
        full = len(have) // size * size
        for start in range(0, full, size):
            yield group, have[start : start + size]
        waiting[group] = have[full:]
    for group, left in waiting.items():
        if left:
            yield group, left


@contextlib.contextmanager
def _ahead(batches: Iterator[_Placed], stop: list[bool]) -> Iterator[Iterator[_Placed]]:
    """Takes batches from an iterator in a thread, one ahead, until `stop`."""
    taken: queue.Queue[Any] = queue.Queue(1)
    over = threading.Event()

    def put(value: Any) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                return taken.put(value, timeout=0.1)

    def work() -> None:
        try:
            for one in batches:
                put(one)
                if over.is_set():
                    break
            put(None)
        except BaseException as error:
            put(error)

    def given() -> Iterator[_Placed]:
        while not stop:
            try:
                one = taken.get(timeout=0.5)
            except queue.Empty:
                continue
            if one is None:
                break
            if isinstance(one, BaseException):
                raise one
            yield one

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        yield given()
    finally:
        over.set()
        thread.join()


# What comes out.


class _Folder:
    """The folder of a run, as one shard sees it."""

    def __init__(self, path: Path, shard: Shard):
        self.path, self.shard = path, shard
        self.suffix = f"{shard.number}-of-{shard.of}"
        self._listed: tuple[int, set[str]] = (-1, set())
        self._begun: set[int] = set()

    def open(self, identity: dict[str, Any]) -> None:
        """Raises UserError where the folder is not of this run."""
        out = f"out={str(self.path)!r}"
        if reason := checkpoints.unwritable(self.path):
            raise UserError(f"{out}: {reason}; choose another folder")
        record = self.path / "jobs.json"
        if not record.exists():
            names = os.listdir(self.path) if self.path.is_dir() else []
            if self.path.is_file() or any(name[0] != "." for name in names):
                raise UserError(f"{out}: exists and is no run; choose another folder")
        try:
            for name in ("rows", "parts"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            if not record.exists():
                value = {"identity": identity, "versions": runs.versions()}
                self.write_json("jobs.json", value)
            before = dict(json.loads(record.read_text())["identity"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{out}: jobs.json is damaged; choose another") from None
        except OSError as error:
            raise _unwritable(self.path, error) from None
        changed = [k for k in before | identity if before.get(k) != identity.get(k)]
        if changed:
            raise UserError(
                f"{out}: holds another run (it differs in {', '.join(changed)}); choose"
                " another folder"
            )
        self._begun = {int(n) for n in os.listdir(self.path / "parts") if n.isdecimal()}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process off the shard; a killed one lets go of it."""
        with (self.path / f".{self.suffix}.lock").open("w") as file:
            with contextlib.suppress(ImportError):
                import fcntl

                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(
                        f"out={str(self.path)!r}: another process does shard"
                        f" {self.shard}; wait for it"
                    ) from None
                except OSError:
                    pass  # a file system without locks
            yield

    def place_of(self, number: int) -> Path:
        return self.path / "rows" / f"{number // 1000:03d}" / f"{number:06d}.npz"

    def is_done(self, number: int) -> bool:
        """Rows are asked in order: one listing for a thousand, not a look at each."""
        where = self.place_of(number)
        if self._listed[0] != number // 1000:
            names = os.listdir(where.parent) if where.parent.is_dir() else []
            self._listed = (number // 1000, set(names))
        if where.name not in self._listed[1]:
            return False
        if number in self._begun:
            self._forget_parts(number)
        return True

    def missing(self, row: Row) -> list[int]:
        if row.number not in self._begun:
            return list(range(row.copies))
        have = {c for a, b, _ in self._parts(row.number) for c in range(a, b)}
        return [copy for copy in range(row.copies) if copy not in have]

    def add(
        self, row: Row, copies: list[int], arrays: dict[str, Any], terms: list[str]
    ) -> bool:
        """Writes copies of a row; returns whether all of it is done."""
        if len(copies) == row.copies:
            self._save(row, arrays, terms)
            return True
        where = self.path / "parts" / f"{row.number:06d}"
        where.mkdir(exist_ok=True)
        breaks = np.flatnonzero(np.diff(copies) > 1) + 1
        for run in np.split(np.arange(len(copies)), breaks):
            name = f"{copies[run[0]]:06d}-{copies[run[-1]]:06d}.npz"
            part = {key: values[run] for key, values in arrays.items()}
            self._write_arrays(where / name, part | {"terms": terms})
        if sum(end - start for start, end, _ in self._parts(row.number)) < row.copies:
            return False
        self.join(row)
        return True

    def join(self, row: Row) -> None:
        parts: list[dict[str, np.ndarray]] = []
        for _, _, path in self._parts(row.number):
            with np.load(path) as file:
                parts.append(dict(file))
        terms = [part.pop("terms") for part in parts][0].tolist()
        keys = list(parts[0])
        self._save(row, {k: np.concatenate([p[k] for p in parts]) for k in keys}, terms)
        self._forget_parts(row.number)

    def _parts(self, number: int) -> list[tuple[int, int, Path]]:
        """(first copy, one after the last, path), in order."""
        found = []
        for path in sorted((self.path / "parts" / f"{number:06d}").glob("*.npz")):
            first, _, last = path.stem.partition("-")
            if last.isdecimal() and first.isdecimal():
                found.append((int(first), int(last) + 1, path))
        return found

    def _forget_parts(self, number: int) -> None:
        shutil.rmtree(self.path / "parts" / f"{number:06d}", ignore_errors=True)

    def _save(self, row: Row, arrays: dict[str, Any], terms: list[str]) -> None:
        where = self.place_of(row.number)
        if where.exists():  # a video is never written twice
            return
        where.parent.mkdir(exist_ok=True)
        facts = {"row": row.number, "seed": row.seed, "terms": terms}
        for name in ("model", "verifier", "stimulus", "label"):
            facts[name] = _readable(getattr(row, name))
        self._write_arrays(where, arrays | facts)

    def _write_arrays(self, path: Path, arrays: dict[str, Any]) -> None:
        self._write(path, lambda file: np.savez(file, **arrays))

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=1) + "\n"
        self._write(self.path / name, lambda file: file.write(text.encode()))

    def _write(self, path: Path, write: Callable[[Any], Any]) -> None:
        """A file that is on the disk whole, or not there."""
        temporary = path.with_name(f".{path.name}.{self.suffix}")
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _readable(text: str) -> str:
    """Bytes of a path that are no UTF-8 as a question mark."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(
        f"out={str(path)!r}: cannot be written ({reason}); make room, or choose another"
        " folder"
    )


def _identity(survey: _Survey, settings: Settings, batch: int) -> dict[str, Any]:
    """What makes two runs one, flat, as JSON would give it back."""
    flat = dataclasses.asdict(settings)
    for name in ("remat", "data_dir"):
        del flat[name]
    flat |= flat.pop("config") | {"table": survey.digest}
    dtype = loading.compute_type(settings.dtype)  # by default, the machine's choice
    flat["dtype"] = "float32" if dtype is None else jnp.dtype(dtype).name
    del flat["seed"]  # every row has its own
    if survey.verified:  # the moments are those of a batch
        flat["batch"] = batch
    return json.loads(json.dumps(flat))


class _Writer:
    """Fetches finished batches from the devices and writes them, in a thread."""

    def __init__(self, folder: _Folder, journal: "_Journal"):
        self._folder, self._journal = folder, journal
        self._pool = ThreadPoolExecutor(1, "write")
        self._busy: collections.deque[Future] = collections.deque()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            while self._busy:
                self._wait()
        finally:
            self._pool.shutdown()

    def submit(self, items: list[_Item], *what: Any) -> None:
        while len(self._busy) > 1:  # a disk that is too slow holds the devices up
            self._wait()
        self._busy.append(self._pool.submit(self._write, items, *what))

    def _wait(self) -> None:
        self._busy.popleft().result()

    def _write(
        self,
        items: list[_Item],
        videos: jax.Array,
        loss: jax.Array,
        final: dict[str, np.ndarray],
    ) -> None:
        n = len(items)
        arrays = {
            "videos": parallel.gather(videos, n),
            "labels": np.array([item.label for item in items]),
            "loss": parallel.gather(loss, n),
            "final": np.stack(list(final.values()), -1)[:n],
        }
        start = 0
        for row, same in itertools.groupby(items, lambda item: item.row):
            copies = [item.copy for item in same]
            of = slice(start, start + len(copies))
            start += len(copies)
            values = {name: value[of] for name, value in arrays.items()}
            if self._folder.add(row, copies, values, list(final)):
                self._journal.finish()


class _Journal:
    """What was done, what failed, and how long the devices waited for a batch."""

    def __init__(self, folder: _Folder, total: int):
        self.total, self.errors = total, list[tuple[int, str]]()
        self._folder, self._lock = folder, threading.Lock()
        self._skipped = self._finished = self._failed = self._batches = 0
        self._failing: set[int] = set()
        self._failures = folder.path / f"failed-{folder.suffix}.jsonl"
        self._failures.write_text("")
        self._started = time.monotonic()
        self._first_end = self._last_end = 0.0
        self._idle = 0.0

    @property
    def over(self) -> int:
        return self._skipped + self._finished + self._failed

    def skip(self) -> None:
        with self._lock:
            self._skipped += 1

    def finish(self) -> None:
        with self._lock:
            self._finished += 1

    def fail(self, number: int, line: int, reason: str) -> None:
        with self._lock:
            if number in self._failing:  # another copy of it
                return
            self._failing.add(number)
            self._failed += 1
            if len(self.errors) < _SHOWN:
                self.errors.append((line, f"line {line}: {reason}"))
            with self._failures.open("a") as file:
                what = {"row": number, "line": line, "error": reason}
                file.write(json.dumps(what) + "\n")

    def begin(self) -> None:
        if self._batches:
            self._idle += time.monotonic() - self._last_end

    def end(self) -> None:
        self._last_end = time.monotonic()
        self._first_end = self._first_end or self._last_end
        self._batches += 1

    def idle(self) -> float:
        """The share of the time since the first batch in which no batch ran."""
        wall = self._last_end - self._first_end
        return self._idle / wall if wall else 0.0

    def save(self, status: str) -> dict[str, Any]:
        record = {
            "status": status,
            "rows": self.total,
            "done_before": self._skipped,
            "finished": self._finished,
            "failed": self._failed,
            "failures": self._failures.name,
            "batches": self._batches,
            "seconds": round(time.monotonic() - self._started, 2),
            "idle_seconds": round(self._idle, 4),
            "idle_share": round(self.idle(), 5),
        }
        self._folder.write_json(f"shard-{self._folder.suffix}.json", record)
        return record
