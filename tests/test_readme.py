"""README and docs/ tell the truth: what they show runs, page by page in one folder."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from leaps_jax import Config, Model, ModelSpec
from leaps_jax.actions import motions
from leaps_jax.cli.main import main
from leaps_jax.data import datasets

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
#: In the order in which a reader comes to them.
PAGES = ("synthesis", "robust-models", "evaluation", "large-runs", "models", "weights")
PAGES += ("speed", "objectives", "method", "differences", "faq", "api")
DOCS = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in PAGES}
TEXT = "\n".join([README, *DOCS.values()])


def test_the_table_of_models_is_the_zoo(capsys):
    assert main(["models", "--markdown"]) == 0
    assert capsys.readouterr().out in DOCS["models"]


def test_readme_is_short_and_links_to_what_exists():
    assert len(README.split()) <= 1200
    assert {f"{name}.md" for name in PAGES} == {p.name for p in ROOT.glob("docs/*.md")}
    pages = {ROOT: README} | {ROOT / "docs" / name: text for name, text in DOCS.items()}
    for page, text in pages.items():
        folder = ROOT if page == ROOT else page.parent
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (folder / link).exists(), f"{page}: {link}"


def test_every_option_of_readme_exists(capsys):
    helped = ""
    for command in (
        *("models", "convert", "synthesize", "train"),
        *("accuracy", "evaluate", "actions", "gallery", "demo", "push"),
    ):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        helped += capsys.readouterr().out
    bash = "".join(re.findall(r"```bash\n(.*?)```", TEXT, re.S))
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", bash)) - {"--check"}
    assert used and all(option in helped for option in used)


def test_every_setting_of_readme_exists():
    fields = {f.name for f in dataclasses.fields(Config)}
    settings = re.findall(r"--set ([^`\n]*)`", TEXT)
    assert settings
    for text in settings:
        assert {part.split("=")[0] for part in text.split()} <= fields


def test_ci_runs_what_readme_tells():
    ci = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    for line in ("pip install torch==2.13.0", "pip install -e '.[convert,tfds,test]'"):
        assert line in README and line.replace("install", "install -q") in ci
    tests = 'python -m pytest -n 2 -m "not heavy"'
    assert f"{tests}\n" in README and f"{tests}\n" in ci
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    (newest,) = re.findall(rf"^{tests} tests/(?:.*\\\n)*.*$", contributing, re.M)
    assert " ".join(newest.split()) in " ".join(ci.split())
    assert "pip install -e '.[convert,test]'" in contributing
    assert "pip install -q -e '.[convert,test]'" in ci


def test_the_library_does_not_need_torch():
    root = Path(__file__).parent.parent
    for path in (root / "leaps_jax").rglob("*.py"):
        found = re.search(r"^\s*(import|from) torch\b", path.read_text(), re.M)
        assert not found, path
    assert '"torch' not in (root / "setup.py").read_text()


# ---- all commands and all Python, in one folder

#: Commands that are not run, and why.
SKIPPED = {
    r"^(python3? -m venv|\. |pip install)": "the environment: .ci/run does these",
    r"^python -m pytest": "these tests",
    r"^curl ": "asks other hosts",
    r"^python (tests|benchmarks)/": "times and compares; needs a GPU or torch, minutes",
    r"--coordinator": "two at a time, which wait for each other: test_multihost.py",
    r"hf:|https://": "asks the network: test_hub.py and test_download.py ask a server",
    r"^leaps-jax bench": "full-size networks, which test_bench.py does not need",
}
#: Commands of the heavy test alone.
HEAVY = {
    r"^leaps-jax synthesize .*@weights/x3d_xs": "two X3D compile for a minute",
    r"^leaps-jax demo": "three networks: test_demo.py runs it",
    r"^leaps-jax accuracy": "renders with optimisations off: see test_accuracy.py",
    r"--tfds": "TensorFlow: test_actions.py writes the data set",
    r"--shard": "another network of the table",
    r"^leaps-jax train .*--data synthetic_actions": "compiles for a minute",
    r"^leaps-jax synthesize .*--objective": "another network: see test_objective.py",
}
#: What is too large here or is not here, in commands and in Python.
SMALLER = {
    r"slow_r50@SLOW_8x8_R50\.pyth": "x3d_xs@x3d_xs.pyth",
    r"/shared/": "",  # of a cluster
    r"(lj\.synthesize\(.*)\)$": r"\1, config=lj.Config(steps=2))",
}
#: What compiles faster, where the heavy commands are left out.
FASTER = {
    r"^(x3d_xs@actions),vivit_small@actions": r"\1,",
    r"x3d_xs@actions": "slow_r50_tiny@actions",
    r"evaluate run/ jack/ --judges .* --out": "evaluate jack/"
    " --judges slow_r50_tiny@actions --out",
    r"gallery run/ jack/": "gallery jack/",
    r'lj\.load_model\("vivit_small@\w+"\)': "stand_in",
}
#: Options that are set, whatever README gives.
SETTINGS = {
    "demo": {"steps": 2},
    "synthesize": {"steps": 2, "preview-every": 0},
    "jobs": {"steps": 2, "batch": jax.device_count()},
    "train": {"steps": 1, "batch": jax.device_count(), "evaluations": 1},
    "actions": {"clips": 1, "size": 32, "frames": 4},
}


class Mine(nn.Module):
    """What README calls your own model."""

    classes: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm")(nn.Conv(4, (3, 8, 8), (1, 8, 8))(x))
        return nn.Dense(self.classes)(x.mean((1, 2, 3)))


def pieces() -> Iterator[tuple[str, str]]:
    """(language, text) of blocks, and commands within the text, in their order."""
    fenced = r"^```(?P<language>\w*)\n(?P<block>.*?)^```"
    inline = r"`(?P<inline>(?:leaps-jax|python) [^`\n]+)`"
    for found in re.finditer(f"{fenced}|{inline}", TEXT, re.M | re.S):
        if found["inline"]:
            if "--" in found["inline"] or found["inline"] == "leaps-jax models":
                yield "bash", found["inline"]
        else:
            yield found["language"], found["block"]


def commands(block: str) -> Iterator[str]:
    for line in block.replace("\\\n", " ").splitlines():
        yield from shlex.join(shlex.split(line, comments=True)).split(" '&&' ")


def settled(words: list[str]) -> list[str]:
    """The words of a command with the options of `SETTINGS`."""
    kind = "jobs" if "--jobs" in words else words[0]
    for option, value in SETTINGS.get(kind, {}).items():
        flag = f"--{option}"
        if flag in words:
            words[words.index(flag) + 1] = str(value)
        else:
            words += [flag, str(value)]
    return words


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """A folder with the files that README speaks of, and names that it uses."""
    from parity import weights

    mediapy = pytest.importorskip("mediapy")
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())
    noise = np.random.default_rng(0).integers(0, 255, (1, 48, 64, 3), np.uint8)
    video = np.concatenate([np.roll(noise, t, 2) for t in range(48)])
    for name in ("clip.mp4", "clips/jack/one.mp4", "clips/wave/two.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        mediapy.write_video(tmp_path / name, video, fps=30)
    published.save(tmp_path / "x3d_xs.pyth", weights("slowfast_x3d_xs"), "model_state")

    class Few(datasets.Renderings):  # to evaluate on
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            object.__setattr__(self, "count", 2)

    monkeypatch.setattr(datasets, "Renderings", Few)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    videos = jnp.zeros((1, 8, 112, 112, 3))
    module = Mine()
    variables = module.init(jax.random.key(0), videos)
    spec = ModelSpec("stand-in", 8, 112, motions.CLASSES)
    many = Mine(len(spec.classes))
    stand_in = Model(
        many, many.init(jax.random.key(0), videos), spec, lambda m, _: m.name == "norm"
    )
    names = {"module": module, "variables": variables, "videos": videos}
    return names | {"stand_in": stand_in}


def follow(names: dict, capsys, skipped: dict, smaller: dict) -> list[str]:
    """Does what README shows; returns the commands that were run."""
    ran = []
    for language, text in pieces():
        for pattern, replacement in smaller.items():
            text = re.sub(pattern, replacement, text, flags=re.M)
        if language == "python":
            exec(compile(text, "README.md", "exec"), names)
        elif text.startswith("model,"):
            Path("jobs.csv").write_text(text)
        elif language == "bash":
            for command in commands(text):
                if any(re.search(p, command) for p in skipped):
                    continue
                words = shlex.split(command)
                assert words[0] == "leaps-jax", f"README: cannot run {command}"
                code = main(settled(words[1:]))
                assert code == 0, f"README: {command}\n{capsys.readouterr().err}"
                ran.append(command)
    return ran


def test_what_readme_shows_runs_in_its_order(newcomer, capsys):
    ran = follow(newcomer, capsys, SKIPPED | HEAVY, SMALLER | FASTER)
    assert len({command.split()[1] for command in ran}) >= 6
    assert newcomer["result"].videos.shape[0] == 1 and "logits" in newcomer


@pytest.mark.heavy
def test_all_that_readme_shows_runs_in_its_order(newcomer, capsys):
    follow(newcomer, capsys, SKIPPED, SMALLER)
