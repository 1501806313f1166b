"""The notebooks run as they are, on the smallest settings that they take."""

import functools
import os
import re
import shutil
from pathlib import Path

import jax
import nbclient
import nbformat
import numpy as np
import published
import pytest
from parity import weights

from leaps_jax import Model, list_models
from leaps_jax.actions import motions
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading
from leaps_jax.zoo import references

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
PUBLISHED = "mc3_18.pth"  # compiles fastest
#: Fields of the forms, by notebook, and few steps.
SHORT = {
    "quickstart": {
        "MODEL": "vivit_small@actions",
        "JUDGES": "vivit_small@robust",
        "STEPS": 2,
    },
    "your_own_model": {
        "FIRST": "vivit_small@actions",
        "SECOND": "vivit_small@robust",
        "ARCHITECTURE": "mc3_18",
        "WEIGHTS": f"https://localhost/{PUBLISHED}",  # never asked: the file is here
        "STEPS": 2,
    },
    "compare_models": {
        "ARCHITECTURES": "vivit_small",
        "JUDGES": "vivit_small@robust vivit_small@actions",
        "STEPS": 2,
    },
    "large_runs": {"ACTIONS": 3, "STEPS": 2, "BATCH": 2},
}
#: Run after the last cell, where a user would go on.
CHECKS = {
    "quickstart": """
import numpy as np

assert result.videos.shape == stimuli.shape == (1, 16, 32, 32, 3)
assert np.isfinite(result.videos).all()
assert result.videos.min() >= 0 and result.videos.max() <= 1
assert result.videos.std() > 0.01 and np.abs(result.videos - stimuli).max() > 0.1
assert verifier is None and result.metrics["priming"].shape == (2, 1)
""",
    "your_own_model": """
means = [lj.predict(model, stimuli) for model in (one, two)]
np.testing.assert_allclose(lj.predict(both, stimuli), sum(means) / 2, atol=1e-3)
names = lj.taps.tap_names(both)
assert {name.split("/")[0] for name in names} == {"first", "second"}
assert result.videos.shape == stimuli.shape and result.metrics["total"].shape == (2, 1)
assert loop.weights == result.weights | {"jump": 4.0}
assert loop.metrics["jump"].shape == (2, 1) and (loop.metrics["jump"] > 0).all()
""",
    "compare_models": """
import json
import zipfile

assert MODELS == ["vivit_small@actions", "vivit_small@robust"]
report = json.loads(Path("report.json").read_text())
assert len(report["runs"]) == 2
assert "index.html" in zipfile.ZipFile("gallery.zip").namelist()
""",
    "large_runs": """
assert len(found) == 3 and all(len(row["videos"]) == 1 for row in found)
assert titles[0] == "jumping jack (vivit_small@robust)"
assert files == sorted(Path("videos/rows").rglob("*.npz"))
""",
}


def save_small(folder: Path) -> None:
    """Small models of the names of shipped ones, which hide those in this folder."""
    build = functools.partial(zoo.build, "vivit_small", motions.CLASSES, size=32)
    module, spec = build(depth=1, temporal_depth=1, width=32, heads=2, hidden=32)
    init = jax.jit(module.init)
    for seed, name in enumerate(("actions", "robust")):
        variables = init(jax.random.key(seed), np.zeros((1, 16, 32, 32, 3), np.float32))
        loading.save(Model(module, variables, spec), folder / name)


def shipped() -> list[str]:
    return [f"{n}@{w}" for n in list_models() for w in references.shipped(n)]


def with_settings(notebook, settings: dict) -> None:
    """Fills in fields of the form, each of which must be there."""
    (form,) = (cell for cell in notebook.cells if cell.id == "settings")
    for name, value in settings.items():
        line = rf"^{name} = .*?(?=  # @param)"
        form.source, count = re.subn(
            line, f"{name} = {value!r}", form.source, flags=re.M
        )
        assert count == 1, name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a notebook in a folder of its own; its cells, with what they put out."""
    done, cache = {}, tmp_path_factory.mktemp("compiled")
    small = tmp_path_factory.mktemp("small")
    save_small(small)
    shared = {  # kernels compile in the shortest time
        "XLA_FLAGS": "--xla_backend_optimization_level=0"
        " --xla_llvm_disable_expensive_passes=true",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def cells(name: str) -> dict:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            shutil.copytree(small, folder, dirs_exist_ok=True)
            if name == "your_own_model":
                tensors = weights("torchvision_mc3_18")
                published.save(folder / PUBLISHED, tensors)
            notebook = nbformat.read(ROOT / "colabs" / f"{name}.ipynb", as_version=4)
            with_settings(notebook, SHORT[name])
            notebook.cells.append(nbformat.v4.new_code_cell(CHECKS[name]))
            client = nbclient.NotebookClient(
                notebook,
                timeout=600,
                kernel_name="python3",
                resources={"metadata": {"path": str(folder)}},
            )
            client.execute(env=os.environ | shared)
            done[name] = {cell.id: cell for cell in notebook.cells}
        return done[name]

    return cells


def html(cell) -> str:
    return "".join(o.data.get("text/html", "") for o in cell.outputs if "data" in o)


def videos(cell) -> list[str]:
    found = re.findall(r"data:video/mp4;base64,([A-Za-z0-9+/=]+)", html(cell))
    assert min(map(len, found)) > 1000
    return found


def text(cell) -> str:
    return "".join(o.get("text", "") for o in cell.outputs)


def test_quickstart_shows_stimulus_and_result_and_asks_others(run):
    cells = run("quickstart")
    assert len(videos(cells["stimulus"])) == 1
    stimulus, synthesis = videos(cells["result"])
    assert stimulus != synthesis
    assert any("image/png" in o.get("data", {}) for o in cells["losses"].outputs)
    told = text(cells["judges"])
    assert all(
        re.search(rf"{model} +{source} +[a-z ]+ \d+%", told)
        for model in ("vivit_small@actions", "vivit_small@robust")
        for source in ("stimulus", "synthesis")
    )
    assert "(1, 23)" in text(cells["features"])


def test_your_own_model_inverts_a_module_reads_a_file_and_adds_a_term(run):
    cells = run("your_own_model")
    assert len(videos(cells["invert"])) == len(videos(cells["loops"])) == 2
    assert "mc3_18: 16 frames of 112 px" in text(cells["weights"])
    assert len(re.findall(r"^ *\d+\.\d%  \w+", text(cells["weights"]), re.M)) == 5
    assert len(re.findall(r"^ +0\.\d+ +0\.\d+  ", text(cells["loops"]), re.M)) == 2


def test_compare_models_shows_a_grid_a_table_and_a_page(run):
    cells = run("compare_models")
    assert len(videos(cells["grid"])) == 3  # a stimulus and two models
    assert "top-1" in html(cells["evaluation"])
    assert "<iframe" in html(cells["pages"])
    assert "2 videos" in text(cells["gallery"])


def test_large_runs_makes_again_what_got_lost(run):
    cells = run("large_runs")
    assert text(cells["table"]).count("vivit_small@robust,") == 3
    assert len(videos(cells["wall"])) == 3
    told = text(cells["resuming"])
    assert "shard-1-of-2.json" in told and "shard-2-of-2.json" in told


def test_the_forms_offer_what_is_shipped():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, 4).cells
        (settings,) = (cell for cell in cells if cell.id == "settings")
        fields = re.findall(r"^(\w+) = .*# @param (\[.*\])$", settings.source, re.M)
        offered = {name: re.findall('"(.+?)"', values) for name, values in fields}
        if "CLASS" in offered:
            assert tuple(offered["CLASS"]) == motions.CLASSES
        if path.stem == "quickstart":
            assert sorted(offered["MODEL"]) == sorted(shipped())
            assert sorted(offered["VERIFIER"]) == sorted([*shipped(), "none"])
        models = re.findall(r"\w+@(?:robust|actions)\b", settings.source)
        assert set(models) <= set(shipped()) | {"name@actions"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_small_and_without_outputs(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len(notebook.cells) < 15
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    if path.stem != "your_own_model":  # definitions belong in the package
        assert not any(re.search(r"^\s*(def|class) ", c.source, re.M) for c in code)
    listed = (ROOT / "colabs" / "README.md").read_text()
    assert path.name in listed
    badge = f"/leaps_jax/blob/main/colabs/{path.name})"
    assert "colab-badge.svg" in notebook.cells[0].source
    assert badge in notebook.cells[0].source


def test_all_notebooks_install_alike():
    installs = set()
    for path in NOTEBOOKS:
        (cell,) = (c for c in nbformat.read(path, 4).cells if c.id == "install")
        installs.add(cell.source)
    assert len(installs) == 1
