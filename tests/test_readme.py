"""README tells the truth: its table is the zoo, its settings and options exist."""

import dataclasses
import re
from pathlib import Path

import pytest

from leaps_jax import Config, cli

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_table_of_models_is_the_zoo(capsys):
    assert cli.main(["models", "--markdown"]) == 0
    assert capsys.readouterr().out in README


def test_every_option_of_readme_exists(capsys):
    helped = ""
    for command in (
        *("models", "convert", "synthesize", "train"),
        *("accuracy", "evaluate", "actions", "demo"),
    ):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        helped += capsys.readouterr().out
    bash = "".join(re.findall(r"```bash\n(.*?)```", README, re.S))
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", bash)) - {"--check"}
    assert used and all(option in helped for option in used)


def test_every_setting_of_readme_exists():
    fields = {f.name for f in dataclasses.fields(Config)}
    settings = re.findall(r"`--set (.*?)`", README)
    assert settings
    for text in settings:
        assert {part.split("=")[0] for part in text.split()} <= fields


def test_ci_runs_what_readme_tells():
    ci = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    for line in ("pip install torch==2.13.0", "pip install -e '.[convert,tfds,test]'"):
        assert line in README and line.replace("install", "install -q") in ci
    tests = 'python -m pytest -n 2 -m "not heavy"'
    assert tests in README and tests in ci


def test_the_library_does_not_need_torch():
    root = Path(__file__).parent.parent
    for path in (root / "leaps_jax").rglob("*.py"):
        found = re.search(r"^\s*(import|from) torch\b", path.read_text(), re.M)
        assert not found, path
    assert '"torch' not in (root / "setup.py").read_text()
