"""Packaging of leaps_jax; settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (HERE / "leaps_jax" / "version.py").read_text()
).group(1)

SHIPPED = "leaps_jax.shipped"  # weights, no modules
REPOSITORY = "https://github.com/OWNER/leaps_jax"


def absolute(readme: str) -> str:
    """README with links that lead somewhere from the package index, too."""
    readme = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\1{REPOSITORY}/raw/main/", readme)
    return re.sub(r"(\]\()(?!https?:|#)", rf"\1{REPOSITORY}/blob/main/", readme)


EXTRAS = {
    # Reading TFDS data sets with video needs TensorFlow; the rest does not.
    "tfds": [
        "tensorflow-datasets>=4.9.10",
        "tensorflow-cpu>=2.21",
        "importlib_resources",  # TFDS needs it for builders in packages
    ],
    # Weights published as safetensors; files of torch are read without it.
    "convert": ["safetensors>=0.4"],
    # Weights of the Hugging Face hub.
    "hub": ["huggingface_hub>=2.0", "safetensors>=0.4"],
    # What --tensorboard writes; the writer comes with the viewer.
    "tensorboard": ["tensorboard>=2.20"],
    # `synthesize --jobs --engine ray`, with the dashboard and `ray job submit`.
    "ray": ["ray[default]>=2.49"],
    # The warping error of `evaluate` needs optical flow.
    "evaluate": ["opencv-python-headless>=4.8"],
    "test": [
        "opencv-python-headless>=4.8",
        "huggingface_hub>=2.0",
        "tensorboard>=2.20",
        "ray>=2.49; python_version < '3.14'",  # there are no wheels for newer ones
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "mypy>=1.14",
        "pre-commit>=4",
        # The tests run the notebooks.
        "nbclient>=0.10",
        "nbformat>=5.10",
        "ipykernel>=6.29",
    ],
    # The site: `mkdocs build --strict`. MkDocs 2 has neither plugins nor hooks.
    "docs": [
        "mkdocs>=1.6,<2",
        "mkdocs-material>=9.6",
        "mkdocstrings-python>=2",
        "ruff>=0.9",  # sets the signatures
        "ziamath>=0.13",
    ],
    # Tests of pages drive the Chromium of the system, where there is one.
    "browser": ["playwright>=1.48"],
    "cuda": ["jax[cuda13]>=0.10.2"],
    "tpu": ["jax[tpu]>=0.10.2"],
}

setup(
    name="leaps_jax",
    version=VERSION,
    description="Feature visualisation for video models: LEAPS in JAX and Flax",
    url=REPOSITORY,
    long_description=absolute((HERE / "README.md").read_text()),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The leaps_jax authors",
    keywords="interpretability feature-visualization video jax flax action-recognition",
    python_requires=">=3.11",
    # checkpoints/ is installed inside the package, where `zoo.load` finds it
    packages=[*find_packages(include=["leaps_jax", "leaps_jax.*"]), SHIPPED],
    package_dir={SHIPPED: "checkpoints"},
    package_data={
        "leaps_jax": ["*.txt", "py.typed"],
        "leaps_jax.actions": ["demo.npz"],
        "leaps_jax.pages": ["templates/*"],
        SHIPPED: ["*@*/**"],
    },
    # These lower bounds were tried together, by the tests of runs, transforms and some
    # kernels. Orbax 0.11.0 fails with this JAX; JAX 0.10.0 lacks what tests of kernels
    # call a device. CI tests what pip takes on Python 3.11 (JAX 0.10.2), and runs a few
    # tests on 3.13 (JAX 0.12.0.1). There is no upper bound: nothing newer is known to
    # fail.
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.40",
        "numpy>=2",
        "pillow>=10",
        "mediapy>=1.2.4",
        # 0.8 brings FFmpeg 9, with which mediapy 1.2.7 cannot read videos, as our tests
        # do; this package itself only writes with it
        "imageio-ffmpeg>=0.6,<0.8",
        "rich>=13",
        "tqdm>=4.60",  # bars in notebooks
        "jinja2>=3.0",
        "pydantic>=2.10",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["leaps-jax = leaps_jax.cli.main:entry"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
