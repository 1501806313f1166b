"""What users are told of is there: all names in README, docs, notebooks, docstrings."""

import ast
import functools
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

import leaps_jax as lj

ROOT = Path(__file__).parent.parent


def texts() -> dict[str, str]:
    """What users read, by where it is."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "CHANGELOG.md"]
    found = {path.name: path.read_text() for path in pages}
    for path in ROOT.glob("colabs/*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        found[path.name] = "\n".join("".join(cell["source"]) for cell in cells)
    for path in ROOT.glob("leaps_jax/**/*.py"):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = (n for n in ast.walk(ast.parse(path.read_text())) if type(n) in kinds)
        docs = [ast.get_docstring(node) or "" for node in nodes]
        found[str(path.relative_to(ROOT))] = "\n".join(docs)
    return found


def named(prefix: str) -> list[tuple[str, str]]:
    """(where, dotted name without the prefix) of all names that begin with it."""
    pattern = rf"(?<![\w./-]){prefix}((?:\.[A-Za-z_]\w*)+)"
    return sorted(
        {
            (where, name[1:])
            for where, text in texts().items()
            for name in re.findall(pattern, text)
            if not name.endswith((".py", ".md"))
        }
    )


def test_what_is_told_of_lj_is_there():
    found = named("lj")
    assert len(found) > 20
    for where, name in found:
        try:
            functools.reduce(getattr, name.split("."), lj)
        except AttributeError:
            pytest.fail(f"{where}: lj.{name} is not there")


def resolves(parts: list[str]) -> bool:
    for end in range(len(parts), -1, -1):
        try:
            module = importlib.import_module(".".join(["leaps_jax", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        return (
            functools.reduce(
                lambda value, part: getattr(value, part, None), parts[end:], module
            )
            is not None
            or not parts[end:]
        )
    return False


def test_what_is_told_of_modules_is_there():
    for where, name in named("leaps_jax"):
        if where != "CHANGELOG.md":  # which tells of former names, too
            assert resolves(name.split(".")), f"{where}: leaps_jax.{name}"


@pytest.mark.parametrize("name", lj.__all__)
def test_what_lj_has_is_documented(name):
    """A docstring, with each argument of a function by its name."""
    value = getattr(lj, name)
    doc = inspect.getdoc(value)
    assert doc and len(doc) > 20
    if inspect.isfunction(value) and len(inspect.signature(value).parameters) > 1:
        for argument in inspect.signature(value).parameters:
            told = re.search(rf"\b{argument}\b", doc.partition("Args:")[2] or doc)
            assert told, f"{name}: {argument}"


def test_all_is_sorted_and_there():
    assert len(set(lj.__all__)) == len(lj.__all__)
    assert all(hasattr(lj, name) for name in lj.__all__)
