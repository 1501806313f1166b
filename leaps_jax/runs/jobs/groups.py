"""Rows of one model and verifier, which share weights on the devices and batches."""

import collections
import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from leaps_jax import objectives, synthesis, taps, update
from leaps_jax.data import clips
from leaps_jax.errors import UserError
from leaps_jax.model import Model
from leaps_jax.runs.jobs.folder import Folder
from leaps_jax.runs.jobs.journal import Notes, in_a_line
from leaps_jax.runs.jobs.settings import Settings
from leaps_jax.runs.jobs.table import Row
from leaps_jax.runtime.engine import Engine
from leaps_jax.runtime.executable_cache import ExecutableCache
from leaps_jax.zoo import load as loading
from leaps_jax.zoo import references

OPEN = 4  # groups in memory at a time


@dataclasses.dataclass(frozen=True)
class Item:
    """One video: a copy of a row."""

    row: Row
    copy: int
    label: int
    stimulus: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Ready:
    """A batch on the host, whose functions are compiled; `start` places it."""

    group: "Group"
    items: list[Item]
    start: Callable[[], tuple[update.State, update.Batch]]


class Groups:
    """The groups of a run, of which those of the last rows stay in memory."""

    def __init__(
        self,
        settings: Settings,
        folder: Folder,
        executables: ExecutableCache | None = None,
    ):
        self._settings, self._folder, self._executables = settings, folder, executables
        self._open: collections.OrderedDict[tuple[str, str], Group | UserError]
        self._open = collections.OrderedDict()

    def of(self, model: str, verifier: str) -> "Group":
        """Raises UserError where the model or the verifier is of no use."""
        key = model, verifier
        if key not in self._open:
            self.keep(self.make(model, verifier), model, verifier)
        self._open.move_to_end(key)
        group = self._open[key]
        if isinstance(group, UserError) or group.broken:
            raise UserError(str(getattr(group, "broken", group)))
        return group

    def keep(self, group: "Group | UserError", model: str, verifier: str) -> None:
        """Keeps what `make` made, instead of what was not used for the longest time."""
        self._open.setdefault((model, verifier), group)
        if len(self._open) > OPEN:
            self._open.popitem(last=False)

    def make(self, model: str, verifier: str) -> "Group | UserError":
        """Loads a group, which is not kept: for another thread than that of `of`."""
        try:
            group = Group(model, verifier, self._settings, self._executables)
            names = [model] + ([verifier] if group.verifier else [])
            # after they were read: the folder knows which ones they must be
            self._folder.claim({name: references.fingerprint(name) for name in names})
            return group
        except UserError as error:
            return error
        except Exception as error:  # hours of work must not end with one model
            return UserError(f"model={model!r}: {in_a_line(error)}")


class Group:
    """A model and a verifier."""

    def __init__(
        self,
        model: str,
        verifier: str,
        settings: Settings,
        executables: ExecutableCache | None = None,
    ):
        load = functools.partial(
            loading.load_model, dtype=settings.dtype, remat=settings.remat
        )
        loaded = load(model)
        spec = dataclasses.replace(loaded.spec, **settings.clip())
        self.model = dataclasses.replace(loaded, spec=spec)
        synthesis.check_input(self.model)
        self.settings, config = settings, settings.config
        self.executables = executables
        self.objective = objectives.METHODS[settings.method](config)
        self.verifier: Model | None = None
        if verifier and "verifier" in self.objective.uses:
            self.verifier = load(verifier, argument="verifier")
            try:
                taps.target_moments(self.verifier)
            except UserError:
                raise UserError(
                    f"verifier={verifier!r}: has no batch norm and no stored"
                    " statistics; store some with `convert --moments DIR`"
                ) from None
        elif "verifier" in self.objective.uses:
            self.objective = self.objective.without_verifier()
        self.primed = self.objective.primed or config.init == "stimulus"
        self.broken = ""

    def decoding(self, row: Row) -> Callable[[], np.ndarray]:
        """What loads the stimulus (t, h, w, 3) of a row, also in another process."""
        return functools.partial(
            clips.load_stimulus,
            row.stimulus,
            self.model.spec,
            short=self.settings.short,
            data_dir=self.settings.data_dir,
        )

    @functools.cached_property
    def engine(self) -> Engine:
        setup = update.make_setup(
            self.model, self.verifier, self.objective, self.settings.config
        )
        return Engine(setup, jax.local_devices(), self.executables)

    def ready(self, items: list[Item], size: int) -> Ready:
        """Fills a batch up to its size with copies of weight 0."""
        index = np.minimum(np.arange(size), len(items) - 1)
        batch = [items[i] for i in index]
        pixels = [i.stimulus for i in batch if i.stimulus is not None]
        self.engine.compile(size)
        start = functools.partial(
            self.engine.start,
            np.array([i.label for i in batch], np.int32),
            np.arange(size) < len(items),
            np.stack(pixels) if pixels else None,
            seed=np.array([i.row.seed for i in batch], np.uint32),
            index=np.array([i.copy for i in batch]),
        )
        return Ready(self, items, start)

    def give_up(self, error: Exception, items: list[Item], notes: Notes) -> None:
        """No row of a model that does not fit the devices, say, is tried again."""
        self.broken = f"model={self.model.spec.name}: {in_a_line(error)}"
        for item in items:
            notes.fail(item.row.number, item.row.line, self.broken)
