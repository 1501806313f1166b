"""Imports go down only, and `import leaps_jax` is quick and light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "leaps_jax"

MODELS = {path.stem for path in (PACKAGE / "models").glob("*.py")}
MODELS -= {"__init__", "generations", "layers", "multiscale", "windows"}
# in one form for each machine:
MACHINES = {"activation", "attention", "convolutions", "depthwise"}
MACHINES |= {"normalization", "pooling"}
MODELS -= MACHINES
NAMINGS = {path.stem for path in (PACKAGE / "conversion/families").glob("*.py")}
NAMINGS -= {"__init__", "resnet"}
#: Bottom first. A module may import modules of lower layers only.
LAYERS = [
    {"errors", "models.generations"},
    {f"models.{name}" for name in MACHINES},
    {"config", "hoisting", "processes", "programs", "resizing"},
    {"video", "transforms", "distances", "models.layers", "models.windows"},
    {"actions.motions", "parametrizations"},
    {"models.multiscale"},
    {f"models.{name}" for name in MODELS},
    {"entries", "actions.scenes"},
    {"taps"},
    {"attacks", "objectives", "checkpoints", "conversion.rules", "parallel"},
    {"conversion.pickles"},
    {"conversion.torch_files"},
    {"zoo", "synthesis", "conversion.families.resnet"},
    {f"conversion.families.{name}" for name in NAMINGS},
    {"conversion.namings", "costs"},
    {"stimuli", "render", "training", "conversion.sources", "progress"},
    {"evaluation.metrics", "evaluation.motion", "evaluation.judges"},
    {"evaluation.protocol", "evaluation.tables"},
    {"evaluation.page"},
    {"loading", "contact_sheet", "bench"},
    {"actions.gallery"},
    {"actions.dataset"},
    {"runs"},
    {"comparison"},
    {"jobs.table"},
    {"jobs.settings", "jobs.folder"},
    {"jobs.journal"},
    {"jobs.groups"},
    {"jobs.batches"},
    {"jobs.pipeline"},
    {"arguments"},
    {"cli"},
    {"__main__"},
]
#: The package's door: it imports what users call, and its version is read from it.
DOOR = {"__init__", "models.__init__", "conversion.__init__", "actions.__init__"}
DOOR |= {"conversion.families.__init__", "jobs.__init__"}
DOOR |= {"evaluation.__init__"}
#: Packages that only these modules may import.
KEPT = {
    "orbax": {"checkpoints"},
    "torch": set(),
    "safetensors": {"conversion.sources"},
    "tensorflow_datasets": {"stimuli"},
    "tensorflow": {"stimuli"},
    "mediapy": {"stimuli", "render"},
    "imageio_ffmpeg": {"stimuli", "render"},
    "PIL": {"stimuli", "contact_sheet"},
    "rich": {"progress", "cli", "evaluation.tables"},
    "cv2": {"evaluation.motion"},
    "matplotlib": {"evaluation.page"},
}


def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(
            path.read_text()
        )
        for path in PACKAGE.rglob("*.py")
    }


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(name: str, known: dict[str, ast.Module]) -> str | None:
    """The module of this package that an import names, if any."""
    if not name.startswith("leaps_jax."):
        return None
    parts = name.split(".")[1:]
    for end in (len(parts), len(parts) - 1):
        if ".".join(parts[:end]) in known:
            return ".".join(parts[:end])
    return None


def test_every_module_has_a_layer():
    assert set(modules()) - DOOR == set().union(*LAYERS)


def test_imports_go_down_only():
    known = modules()
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{name} imports {target}"
        for name, tree in known.items()
        if name not in DOOR
        for imported in imports(tree)
        if (target := own(imported, known)) and level[target] >= level[name]
    ]
    assert not wrong


def test_models_know_nothing_of_leaps():
    known = modules()
    for name, tree in known.items():
        if name.startswith("models."):
            used = {own(i, known) for i in imports(tree)} - {None, "errors"}
            assert all(u.startswith("models.") for u in used), name


@pytest.mark.parametrize("package", KEPT)
def test_a_heavy_package_is_known_to_few(package):
    users = {
        name
        for name, tree in modules().items()
        if any(i.split(".")[0] == package for i in imports(tree))
    }
    assert users <= KEPT[package]


def test_import_is_light():
    heavy = ["torch", "tensorflow", "mediapy", "orbax", "matplotlib", "cv2", "IPython"]
    code = f"import sys, leaps_jax;print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
