"""What is read from JSON is as declared, or refused in one line."""

import json
from pathlib import Path

import pytest

from leaps_jax import schemas
from leaps_jax.errors import UserError

REMEDY = "make it again"
SPEC = {
    "name": "x3d_xs",
    "frames": 4,
    "size": 32,
    "classes": ["left", "名", ""],
    "stride": 2,
    "mean": [0, 0.5, 0.5],
    "std": [1, 0.5, 0.5],
    "licence": "",
    "source": "",
}
GOOD = {
    schemas.ModelFile: {
        "format": 1,
        "architecture": {
            "name": "x3d_xs",
            "frames": 4,
            "size": 32,
            "overrides": {"depths": [1, 2], "dropout": 0.5, "norm": None},
        },
        "spec": SPEC,
        "shapes": {"params/a": [2, 3], "params/b": []},
        "digests": {"params/a": "0" * 64},
        "extra": {"anything": [None]},
    },
    schemas.ShardIndex: {"weight_map": {"a": "x-1.safetensors", "b": "x-2.bin"}},
    schemas.RunRecord: {
        "status": "running",
        "step": 3,
        "seconds": 1,
        "identity": {"steps": 4},
        "judges": {
            "self": {
                "model": "x3d_xs",
                "of": 1,
                "correct": 0,
                "seen": ["left"],
                "confidence": [0.5],
            }
        },
    },
    schemas.RunResults: {"classes": ["left"], "settings": {"model": "x3d_xs@w"}},
    schemas.Metrics: {"step": 0, "total": [1.0], "raw": {"l2": [0.0]}},
    schemas.JobsRecord: {"identity": {}, "weights": {"x3d_xs@w": "f" * 64}},
    schemas.TrainRecord: {
        "status": "stopped",
        "steps": 1,
        "seconds": 0.5,
        "identity": {},
    },
}


def changed(value, path, new):
    """A copy with another value at a path, or without it where that is `...`."""
    value = json.loads(json.dumps(value))
    *before, last = path
    inner = value
    for part in before:
        inner = inner[part]
    if new is ...:
        del inner[last]
    else:
        inner[last] = new
    return value


def refusal(schema, content: bytes) -> str:
    with pytest.raises(UserError) as error:
        schemas.parsed("a.json", content, schema, REMEDY)
    text = str(error.value)
    assert text.startswith("a.json: ") and text.endswith(f"; {REMEDY}")
    assert text.isprintable() and len(text) <= 380
    return text


@pytest.mark.parametrize("schema", GOOD)
def test_what_is_declared_is_read_and_kept(schema):
    given = GOOD[schema] | {"of a later version": [1]}
    content = json.dumps(given).encode()
    found = schemas.parsed("a.json", content, schema, REMEDY)
    assert found.model_dump(exclude_unset=True) == given


@pytest.mark.parametrize("schema", GOOD)
@pytest.mark.parametrize("content", ["[1]", "null", "3", '"x"', "true"])
def test_what_is_no_object(schema, content):
    assert f"all of it={json.loads(content)!r}: must be" in refusal(
        schema, content.encode()
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b"\xff", b'{"a": 1' + b"0" * 5000 + b"}", b"{} {}"],
    ids=["empty", "cut", "deep", "latin", "digits", "two"],
)
def test_what_is_no_json(content):
    assert "is damaged, it is no JSON" in refusal(schemas.RunRecord, content)


MODEL, RUN = schemas.ModelFile, schemas.RunRecord
MISTAKES = [
    (MODEL, ("spec", "frames"), "4", "spec.frames='4': must be a valid integer"),
    (MODEL, ("spec", "frames"), 4.0, "spec.frames=4.0: must be a valid integer"),
    (MODEL, ("spec", "frames"), True, "spec.frames=True: must be a valid integer"),
    (MODEL, ("spec", "frames"), 0, "spec.frames=0: must be greater than or equal to 1"),
    (MODEL, ("spec", "frames"), 2**17, "must be less than or equal to 65536"),
    (MODEL, ("spec", "size"), 10**9, "spec.size=1000000000: must be less"),
    (MODEL, ("spec", "std", 0), 0, "spec.std[0]=0: must be greater than 0"),
    (MODEL, ("spec", "std", 2), "a", "spec.std[2]='a': must be a valid number"),
    (MODEL, ("spec", "std", 1), float("inf"), "std[1]=inf: must be a finite number"),
    (MODEL, ("spec", "mean", 1), float("nan"), "mean[1]=nan: must be a finite number"),
    (MODEL, ("spec", "mean"), None, "spec.mean=None: must be a valid list"),
    (MODEL, ("spec", "std"), [1, 1], "spec.std=[1, 1]: must have at least 3"),
    (MODEL, ("spec", "classes"), [], "spec.classes=[]: must have at least 1"),
    (MODEL, ("spec", "classes"), "ab", "spec.classes='ab': must be a valid list"),
    (MODEL, ("spec", "classes", 1), 5, "spec.classes[1]=5: must be a valid string"),
    (MODEL, ("spec", "classes", 1), "\ud800", "classes[1]='\\ud800': "),
    (MODEL, ("spec", "classes", 0), "a\0b", "has unprintable characters"),
    (MODEL, ("spec", "classes", 0), "\x1b[31m", "has unprintable characters"),
    (MODEL, ("spec", "name"), None, "spec.name=None: must be a valid string"),
    (MODEL, ("spec", "colour"), 1, "spec.colour: is not known"),
    (MODEL, ("spec", "size"), ..., "spec.size: is missing"),
    (MODEL, ("spec",), None, "spec=None: must be a valid dictionary"),
    (MODEL, ("format",), "1", "format='1': must be a valid integer"),
    (MODEL, ("architecture",), [], "architecture=[]: must be a valid dictionary"),
    (MODEL, ("architecture", "overrides"), [], "architecture.overrides=[]: must be"),
    (MODEL, ("architecture", "overrides", "a"), {}, "architecture.overrides.a"),
    (MODEL, ("shapes", "params/a", 1), None, "shapes.params/a[1]=None: must be"),
    (MODEL, ("shapes", "params/a", 1), -1, "must be greater than or equal to 0"),
    (MODEL, ("digests", "params/a"), "0", "digests.params/a='0': must match"),
    (MODEL, ("digests", "\x1b" * 999), 3, "digests.\\x1b\\x1b"),
    (MODEL, ("extra",), [1], "extra=[1]: must be a valid dictionary"),
    (schemas.ShardIndex, ("weight_map",), None, "weight_map=None: must be a valid"),
    (schemas.ShardIndex, ("weight_map",), {}, "must have at least 1 item"),
    (schemas.ShardIndex, ("weight_map", "a"), None, "weight_map.a=None: must be"),
    *(
        (schemas.ShardIndex, ("weight_map", "a"), name, "weight_map.a=")
        for name in (".", "..", "", "/", "a/b.bin", "../x.bin", "a\\b.bin", "a\0.bin")
    ),
    (schemas.ShardIndex, ("weight_map", "a"), "x.index.json", "must end in .safetens"),
    (
        schemas.ShardIndex,
        ("weight_map", "a"),
        "x" * 300 + ".bin",
        "must have at most 255",
    ),
    (RUN, ("status",), "over", "status='over': must be 'running', 'stopped',"),
    (RUN, ("step",), "3", "step='3': must be a valid integer"),
    (RUN, ("seconds",), -1, "seconds=-1: must be greater than or equal to 0"),
    (RUN, ("identity",), None, "identity=None: must be a valid dictionary"),
    (RUN, ("judges",), [], "judges=[]: must be a valid dictionary"),
    (RUN, ("judges", "self"), {}, "judges.self.model: is missing"),
    (RUN, ("judges", "self", "seen", 0), 3, "judges.self.seen[0]=3: must be"),
    (schemas.RunResults, ("classes",), None, "classes=None: must be a valid list"),
    (schemas.RunResults, ("settings", "model"), 3, "settings.model=3: must be a text"),
    (schemas.JobsRecord, ("weights",), [1], "weights=[1]: must be a valid dictionary"),
    (schemas.JobsRecord, ("weights", "x3d_xs@w"), 3, "weights.x3d_xs@w=3: must be a"),
    (schemas.TrainRecord, ("steps",), -1, "steps=-1: must be greater"),
    (schemas.Metrics, ("total",), ["1"], "total[0]='1': must be a valid number"),
]


@pytest.mark.parametrize(
    ("schema", "path", "value", "words"),
    MISTAKES,
    ids=[f"{m[0].__name__}-{i}" for i, m in enumerate(MISTAKES)],
)
def test_a_mistake_is_a_line_with_field_value_and_remedy(schema, path, value, words):
    wrong = changed(GOOD[schema], path, value)
    assert words in refusal(schema, json.dumps(wrong).encode())


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    def read(path: Path):
        return schemas.read(path, schemas.JobsRecord, REMEDY)

    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError):
        read(path)
    path.mkdir()
    with pytest.raises(UserError, match="is no regular file; make it again"):
        read(path)
    with pytest.raises(UserError, match="cannot be read .File name too long"):
        read(tmp_path / ("x" * 300))
    monkeypatch.setattr(schemas, "_BYTES", 1000)
    (tmp_path / "b.json").write_bytes(b" " * 1001)
    with pytest.raises(UserError, match="is larger than"):
        read(tmp_path / "b.json")
