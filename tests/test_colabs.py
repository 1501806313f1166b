"""The notebooks run as they are, on the smallest settings that they take."""

import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

from leaps_jax import list_models
from leaps_jax.actions import motions
from leaps_jax.zoo import references

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "colabs" / "quickstart.ipynb"
SHORT = {  # the pair of shipped models that compiles fastest on a CPU
    "QUICKSTART_MODEL": "vivit_small@actions",
    "QUICKSTART_VERIFIER": "slow_r50_tiny@actions",
    "QUICKSTART_STEPS": "4",
}
# Run after the last cell, where a user would go on.
CHECK = """
import numpy as np

assert result.videos.shape == stimuli.shape == (1, 16, 112, 112, 3)
assert np.isfinite(result.videos).all()
assert result.videos.min() >= 0 and result.videos.max() <= 1
assert result.videos.std() > 0.01 and np.abs(result.videos - stimuli).max() > 0.1
assert verifier is not None and result.metrics["diversity"].shape == (4, 1)
"""


def shipped() -> list[str]:
    return [f"{n}@{w}" for n in list_models() for w in references.shipped(n)]


@pytest.fixture(scope="module")
def ran():
    """The cells of the quickstart by their ids, with what they put out."""
    notebook = nbformat.read(QUICKSTART, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECK))
    # From the root, so that the kernel imports the package under test.
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute(env=os.environ | SHORT)
    return {cell.id: cell for cell in notebook.cells}


def html(cell) -> str:
    return "".join(o.data.get("text/html", "") for o in cell.outputs if "data" in o)


def text(cell) -> str:
    return "".join(o.get("text", "") for o in cell.outputs)


def test_quickstart_shows_stimulus_and_result_side_by_side(ran):
    assert html(ran["stimulus"]).count("data:video/mp4;base64,") == 1
    shown = html(ran["result"])
    assert shown.count("<video") == shown.count("data:video/mp4;base64,") == 2
    videos = re.findall(r"base64,([A-Za-z0-9+/=]+)", shown)
    assert min(map(len, videos)) > 1000 and videos[0] != videos[1]


def test_quickstart_tells_what_a_user_asks(ran):
    losses = text(ran["losses"])
    terms = ("cross_entropy", "priming", "coherence", "diversity", "total")
    assert all(term in losses for term in terms) and "nan" not in losses
    assert all(model in text(ran["judges"]) for model in shipped())
    assert "(1, 23)" in text(ran["features"])
    assert not [o for c in ran.values() for o in c.get("outputs", ()) if "ename" in o]


def test_the_form_offers_what_is_shipped():
    (settings,) = (c for c in nbformat.read(QUICKSTART, 4).cells if c.id == "settings")
    fields = dict(re.findall(r"^(\w+) = .*# @param (\[.*\])$", settings.source, re.M))
    offered = {name: re.findall('"(.+?)"', values) for name, values in fields.items()}
    assert sorted(offered["MODEL"]) == sorted(shipped())
    assert sorted(offered["VERIFIER"]) == sorted([*shipped(), "none"])
    assert tuple(offered["CLASS"]) == motions.CLASSES


@pytest.mark.parametrize(
    "path", sorted((ROOT / "colabs").glob("*.ipynb")), ids=lambda path: path.name
)
def test_notebooks_are_small_and_without_outputs(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len(notebook.cells) < 15
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(re.search(r"^\s*(def|class) ", c.source, re.M) for c in code)
    listed = (ROOT / "colabs" / "README.md").read_text()
    assert path.name in listed
