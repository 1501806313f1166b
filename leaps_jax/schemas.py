"""What may be written in JSON that is read again, each file in one declaration.

Such a file may come from a stranger. `read` refuses whatever is not declared here in
one line: file, field, value, remedy. Nothing is converted: "16" is no number.

>>> read(Path("run/run.json"), RunResults, "give another run")     # doctest: +SKIP
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from leaps_jax.errors import UserError, printable
from leaps_jax.model import MOST_CLASSES, MOST_FRAMES, MOST_SIZE

_BYTES = 2**26  # of a file: more than any of those that this package writes
_VALUE = 60  # characters of a value that is refused
_FIELD = 120


def _is_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has unprintable characters")
    return text


def _is_text(value: Any) -> str:
    """Text that may hold bytes of a path that are no UTF-8, as Python has them."""
    if not isinstance(value, str):
        raise ValueError("must be a text")
    return value


def _is_file_name(text: str) -> str:
    """A name, not a path: an index cannot point outside its folder."""
    if Path(text).name != text or "\\" in text:
        raise ValueError("must be the name of a file in the same folder")
    if Path(text).suffix not in (".safetensors", ".bin"):
        raise ValueError("must end in .safetensors or .bin")
    return _is_printable(text)


#: Text that is shown to people, and becomes names of files.
Name = Annotated[str, Field(max_length=1000), AfterValidator(_is_printable)]
FileName = Annotated[str, Field(max_length=255), AfterValidator(_is_file_name)]
Text = Annotated[Any, AfterValidator(_is_text)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Frames = Annotated[int, Field(ge=1, le=MOST_FRAMES)]
Size = Annotated[int, Field(ge=1, le=MOST_SIZE)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Scalar = None | bool | Annotated[int, Field(ge=-(2**31), lt=2**31)] | float | str
#: A field of a module.
Setting = Scalar | Annotated[list[Scalar | list[Scalar]], Field(max_length=64)]
Axis = Annotated[int, Field(ge=0, le=2**40)]


class _Declared(BaseModel):
    """Keys that are not declared are kept: a record that is read is written again."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="allow", allow_inf_nan=False
    )


class Spec(_Declared):
    """The facts of a model; see `model.ModelSpec`."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    frames: Frames
    size: Size
    classes: Annotated[list[Name], Field(min_length=1, max_length=MOST_CLASSES)]
    stride: Frames = 1
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.0, 0.0, 0.0]
    std: Annotated[
        list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)
    ] = [1.0, 1.0, 1.0]
    licence: str = ""
    source: str = ""


class Architecture(_Declared):
    """What builds a module again; see `zoo.build.architecture`."""

    name: Name
    frames: Frames
    size: Size
    overrides: dict[str, Setting] = {}


class Format(_Declared):
    """Of model.json: of a newer version, the rest may be of another form."""

    format: Annotated[int, Field(ge=1)]


class ModelFile(Format):
    """model.json of a checkpoint."""

    architecture: Architecture
    spec: Spec
    shapes: dict[str, Annotated[list[Axis], Field(max_length=32)]]
    digests: dict[str, Digest] = {}  # older folders have none
    extra: dict[str, Any] = {}


class ShardIndex(_Declared):
    """model.safetensors.index.json, or that of pytorch_model.bin."""

    weight_map: Annotated[dict[str, FileName], Field(min_length=1)]


class Verdict(_Declared):
    """What one judge sees in the videos of a run."""

    model: Name
    of: Count
    correct: Count | None  # None where no class was asked for
    seen: list[Name]
    confidence: list[Annotated[float, Field(ge=0, le=1)]]


class RunStatus(_Declared):
    """run.json of any run: how far it is."""

    status: Literal["running", "stopped", "finished", "failed"]
    step: Count


class RunRecord(RunStatus):
    """run.json of a run that goes on."""

    seconds: Annotated[float, Field(ge=0)]
    identity: dict[str, Any]
    files: list[Any] = []  # earlier versions listed none; what is no name is no file
    judges: dict[str, Verdict] = {}


class RunSettings(_Declared):
    """Of what made a run, what an evaluation asks for."""

    model: Text | None = None
    verifier: Text | None = None


class RunResults(_Declared):
    """run.json of a run that is evaluated; another program may have written it."""

    classes: Annotated[list[Name], Field(min_length=1)]
    settings: RunSettings = RunSettings()
    identity: dict[str, Any] = {}


def _is_bar(bar: list[Any]) -> list[Any]:
    """A class and its probability."""
    if not (len(bar) == 2 and isinstance(bar[0], str) and _is_share(bar[1])):
        raise ValueError("must be a name and a number in [0, 1]")
    _is_printable(bar[0])
    return bar


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


Bar = Annotated[list[Any], AfterValidator(_is_bar)]


class ShownVerdict(_Declared):
    """What a gallery shows of a verdict; earlier versions wrote `seen` alone."""

    seen: list[Name]
    correct: Count | None = 0  # None where no class was asked for
    confidence: list[Annotated[float, Field(ge=0, le=1)]]
    top: list[Annotated[list[Bar], Field(min_length=1)]] | None = None
    asked: list[Annotated[float, Field(ge=0, le=1)] | None] | None = None


class ShownSettings(RunSettings):
    """Of what made a run, what a gallery shows."""

    method: Text = ""
    config: dict[str, Any] = {}


class RunShown(_Declared):
    """run.json of a run that a gallery shows."""

    classes: Annotated[list[Name], Field(min_length=1)]
    settings: ShownSettings
    judges: dict[str, ShownVerdict]


class GalleryRecord(_Declared):
    """gallery.json: what a gallery wrote."""

    files: list[str]


class Metrics(_Declared):
    """A line of metrics.jsonl; earlier versions wrote other terms."""

    step: Count
    total: list[float] = []
    confidence: list[float] = []
    gradient: list[float] = []
    raw: dict[str, list[float]] = {}
    weighted: dict[str, list[float]] = {}


class JobsRecord(_Declared):
    """jobs.json of a table of jobs."""

    identity: dict[str, Any]
    weights: dict[Text, str]


class JobsFacts(_Declared):
    """jobs.json of a table whose progress is asked for; earlier versions told less."""

    table: Text = ""
    rows: Count | None = None
    identity: dict[str, Any]


class JobsWorker(_Declared):
    """A worker of a table of jobs."""

    worker: Name
    node: Name
    model: Text
    running: Count
    batches: Count
    rows: Count


class JobsProgress(_Declared):
    """shard-1-of-1.json: how far one process is with a table of jobs."""

    status: Literal["running", "stopped", "finished"]
    finished: Count
    batches: Count
    seconds: Annotated[float, Field(ge=0)]
    idle_share: Annotated[float, Field(ge=0)]
    running: Count = 0
    workers: list[JobsWorker] = []


class JobsFailure(_Declared):
    """A line of failed-1-of-1.jsonl."""

    row: Count


class TrainRecord(_Declared):
    """What a training notes of itself, beside its states or in its checkpoint."""

    status: Literal["running", "stopped", "finished", "failed"]
    steps: Count
    seconds: Annotated[float, Field(ge=0)]
    identity: dict[str, Any]


Schema = TypeVar("Schema", bound=BaseModel)


def read(path: Path, schema: type[Schema], remedy: str) -> Schema:
    """Reads a file.

    Args:
      path: of the file.
      schema: a class of this module.
      remedy: ends the line of an error.

    Raises:
      FileNotFoundError, NotADirectoryError: there is no such file.
      UserError: it cannot be read, or is not as declared.
    """
    try:
        if not path.is_file() and path.exists():  # a pipe would be waited for
            _refuse(path, "is no regular file", remedy)
        with path.open("rb") as file:
            content = file.read(_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror or error})", remedy)
    if len(content) > _BYTES:
        _refuse(path, f"is larger than {_BYTES >> 20} MiB", remedy)
    return parsed(path, content, schema, remedy)


def parsed(
    path: Path | str, content: bytes, schema: type[Schema], remedy: str
) -> Schema:
    """The content of a file; see `read`.

    >>> parsed("a.json", b'{"classes": [5]}', RunResults, "replace it")
    Traceback (most recent call last):
    leaps_jax.errors.UserError: a.json: classes[0]=5: must be a valid string; replace it
    """
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, too
        reason = printable(str(error), 100)
        _refuse(path, f"is damaged, it is no JSON ({reason})", remedy)
    return checked(path, value, schema, remedy)


def checked(path: Path | str, value: Any, schema: type[Schema], remedy: str) -> Schema:
    """A value that was JSON; see `read`.

    Raises:
      UserError: it is not as declared.
    """
    try:
        return schema.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
    field, said = _path(first["loc"]), first["msg"]
    what = re.sub(r"^\w+ should(?= )", "must", said.removeprefix("Value error, "))
    what = re.sub(r" or instance of \w+| after validation", "", what)
    if first["type"] == "missing":
        what = "is missing"
    elif first["type"] == "extra_forbidden":
        what = "is not known"
    else:
        field += f"={printable(repr(first['input'])[:999], _VALUE)}"
    _refuse(path, f"{field}: {what}", remedy)


def _path(parts: tuple[int | str, ...]) -> str:
    """The way to a field: spec.std[0]."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return printable(text.removeprefix("."), _FIELD) or "all of it"


def _refuse(path: Path | str, what: str, remedy: str) -> NoReturn:
    raise UserError(f"{path}: {what}; {remedy}") from None
