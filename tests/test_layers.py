"""Imports go down only, and `import leaps_jax` is quick and light."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "leaps_jax"

#: Bottom first: packages, with all in them that is not named elsewhere, and modules. A
#: module may import those of lower ranks, and of its own rank its package's alone.
LAYERS = [
    # mistakes of users, lines of progress, files, the version: nothing of this package;
    # kernels, one operation each in the form that each machine runs fast: JAX alone;
    # pages, HTML from templates; videos as files to look at
    {"errors", "progress", "files", "version"} | {"kernels", "pages", "render"},
    # architectures: their layers and kernels, nothing of LEAPS; devices, processes and
    # executables: nothing of videos or models
    {"models", "runtime"},
    # facts and maths of videos, models and losses, up to one step on one device; what
    # may be written in JSON: no other files
    {"config", "model", "video", "taps", "transforms", "parametrizations"}
    | {
        "terms",
        "microscopes",
        "objectives",
        "attacks",
        "attributions",
        "hints",
        "update",
        "schemas",
    }
    | {"actions"},
    # many steps on those of all devices
    {"runtime.engine"},
    # what a run is made of, none of which knows another: syntheses, models with
    # weights, clips, judges, pictures
    {"synthesis", "result", "zoo", "data", "evaluation"} | {"runs.contact_sheet"},
    # what puts these together: training, folders of runs and jobs, data sets,
    # measurements
    {"training", "runs", "actions.gallery", "actions.dataset", "bench", "floor"},
    # what a user types: all
    {"cli"},
]
#: The package's doors: what users import, and what Python runs.
DOORS = {"__init__", "__main__"}
#: Packages that only these modules may import.
KEPT = {
    "orbax": {"zoo.checkpoints"},
    "torch": set(),
    "safetensors": {"zoo.conversion.sources"},
    "tensorflow_datasets": {"data.tfds"},
    "tensorflow": {"data.tfds"},
    "mediapy": {"render"},
    "imageio_ffmpeg": {"data.ffmpeg", "render"},
    "huggingface_hub": {"zoo.hub"},
    "PIL": {"data.arrays", "data.resizing", "runs.contact_sheet"}
    | {"runs.previews", "runs.events", "render"},
    "jinja2": {"pages"},
    "markupsafe": {"pages", "pages.curves"},
    "tqdm": {"progress"},
    "rich": {"progress", "evaluation.tables"}
    | {"cli.models", "cli.accuracy", "cli.evaluate", "cli.bench"},
    "cv2": {"evaluation.motion"},
    "pydantic": {"schemas"},
    "tensorboard": {"runs.events"},
    "fsspec": {"runs.jobs.places"},
    "ray": {"runs.jobs.crew", "runs.jobs.ray_engine"},
    "matplotlib": {"evaluation.page", "evaluation.plots"},
}


def modules() -> dict[str, ast.Module]:
    """By name; the `__init__` of a package has that of the package."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(
            ".__init__"
        ): ast.parse(path.read_text())
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


def rank(name: str) -> int | None:
    """Of a module: where it is named, or else the package that it is in."""
    while name:
        for i, layer in enumerate(LAYERS):
            if name in layer:
                return i
        name = name.rpartition(".")[0]
    return None


def edges() -> list[tuple[str, str]]:
    """All pairs of a module and one that it imports."""
    known = modules()
    return sorted(
        (name, target)
        for name, tree in known.items()
        if name not in DOORS
        for target in {own(imported, known) for imported in imports(tree)} - {None}
    )


def home(name: str) -> str:
    """The package of a module, "" of those at the top."""
    first = name.split(".")[0]
    return first if (PACKAGE / first).is_dir() else ""


def fits(name: str, target: str) -> bool:
    if rank(target) == rank(name):
        return home(target) == home(name)
    return rank(target) < rank(name)


def test_every_module_has_a_layer():
    named = [name for layer in LAYERS for name in layer]
    assert len(LAYERS) <= 7 and len(named) == len(set(named))
    assert set(named) <= set(modules())
    assert [n for n in modules() if n not in DOORS and rank(n) is None] == []


def test_imports_go_down_only():
    assert not [edge for edge in edges() if not fits(*edge)]


def test_no_module_imports_itself_through_others():
    graph = {}
    for name, target in edges():
        graph.setdefault(name, set()).add(target)
    list(graphlib.TopologicalSorter(graph).static_order())  # else CycleError


def test_no_module_imports_the_root():
    """Its modules, yes, but not the names that `__init__` has for users."""
    known = modules()
    for name, tree in known.items():
        if name in DOORS:
            continue
        found = imports(tree)
        assert "leaps_jax" not in found, name
        assert [
            i for i in found if i.startswith("leaps_jax.") and not own(i, known)
        ] == []


def test_kernels_know_jax_alone():
    known = modules()
    for name, tree in known.items():
        if name.startswith("kernels."):
            used = {own(i, known) for i in imports(tree)} - {None}
            assert all(u.startswith("kernels.") for u in used), name


def test_models_know_nothing_of_leaps():
    known = modules()
    for name, tree in known.items():
        if name.startswith("models."):
            used = {own(i, known) for i in imports(tree)} - {None, "errors"}
            assert all(u.startswith(("models.", "kernels.")) for u in used), name


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


def test_import_changes_no_environment():
    code = (
        "import os, flax.linen, optax; before = dict(os.environ); import leaps_jax;"
        "assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
