"""A small program to keep, and what tests look for where it is kept."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.runtime.executable_cache import ExecutableCache

ONE = jax.devices()[:1]


class Doubling:
    """A program that tells how often it was traced."""

    def __init__(self, folder: Path):
        self.programs, self.traced = ExecutableCache(folder), 0

    def __call__(self, made_of="doubling", shape=(3,), dtype=jnp.float32):
        def more(_, x):
            return jnp.sin(x) @ jnp.outer(x, x) + jnp.exp(x).sum()

        def double(x):
            self.traced += 1
            return {"twice": 2 * x, "more": jax.lax.fori_loop(0, 3, more, x)}

        x = jax.device_put(jnp.ones(shape, dtype), ONE[0])
        self.traced = 0
        function = jax.jit(double, donate_argnums=0)
        compiled = self.programs.traced(function, (x,), ONE, made_of).compile()
        np.testing.assert_array_equal(compiled(x)["twice"], np.full(shape, 2))
        assert x.is_deleted(), "its memory was not given to the result"
        return self.traced


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kept").glob("*"))


def one_line(capsys, *parts: str) -> bool:
    (line,) = capsys.readouterr().err.splitlines()
    return line.startswith("compile cache: ") and all(part in line for part in parts)


def give_away(path: Path, monkeypatch) -> None:
    """Makes a file another user's; who is not root becomes another user."""
    if os.geteuid() == 0:
        os.chown(path, 4321, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4321)
