"""Compiled steps come back from disk: the same bits without a trace, or not at all."""

import dataclasses
import errno
import functools
import hashlib
import hmac
import os
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import lru_cache
from jax.experimental.compilation_cache import compilation_cache

from leaps_jax import Config, Model, files, objectives, synthesis, update
from leaps_jax.runs import jobs
from leaps_jax.runtime import engine, executable_cache
from leaps_jax.runtime.executable_cache import ExecutableCache, described
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading

CLASSES = ("bend", "jack", "run")
CONFIG = Config(steps=4, steps_per_call=2)
ONE = jax.devices()[:1]
STIMULI = np.random.default_rng(0).random((2, 4, 28, 28, 3), np.float32)


@functools.cache
def network(seed: int) -> Model:
    module, spec = zoo.build(
        "timesformer_small", CLASSES, frames=4, size=28, patch=14, stem=(), depth=1
    )
    variables = jax.jit(module.init)(jax.random.key(seed), np.zeros((1, 4, 28, 28, 3)))
    return Model(module, variables, spec)


@pytest.fixture(autouse=True)
def config_home(tmp_path_factory, monkeypatch):
    """Where the key of the user is; lines of other tests count as not yet said."""
    path = tmp_path_factory.mktemp("user") / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path))
    executable_cache._tell.cache_clear()
    return path


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a run as a new process would: (videos, how often a network is traced)."""
    traced = []
    for name in ("_evaluate", "prime"):
        function = getattr(update, name)

        def counting(*of, function=function):
            traced.append(function)
            return function(*of)

        monkeypatch.setattr(update, name, counting)

    def run(kept=True, model=None, config=CONFIG, objective=None):
        traced.clear()
        result = synthesis.synthesize(
            model or network(0),
            STIMULI,
            [0, 1],
            None,
            config,
            objective,
            ONE,
            ExecutableCache(tmp_path / "kept") if kept else None,
        )
        return result.videos, len(traced)

    run.traced = traced
    return run


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kept").glob("*"))


def test_the_second_start_traces_nothing_and_gives_the_same_bits(start, tmp_path):
    expected, traced = start(kept=False)
    assert traced and not kept(tmp_path)
    first, traced = start()
    assert traced and len(kept(tmp_path)) == 2
    second, traced = start()
    assert traced == 0
    np.testing.assert_array_equal(expected, first)
    np.testing.assert_array_equal(first, second)

    expected, _ = start(kept=False, model=network(1))
    other, traced = start(model=network(1))
    assert traced == 0 and np.abs(other - first).max() > 1e-3
    np.testing.assert_array_equal(other, expected)

    other, traced = start(config=dataclasses.replace(CONFIG, seed=1))
    assert traced == 0 and np.abs(other - first).max() > 1e-3

    other, traced = start(config=dataclasses.replace(CONFIG, learning_rate=0.5))
    assert traced > 0 and np.abs(other - first).max() > 1e-3


def test_a_table_of_jobs_starts_again_without_a_trace(start, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda name, **_: network(0))
    monkeypatch.setattr(loading, "fingerprint", lambda name: name)
    np.savez(tmp_path / "clip.npz", video=np.uint8(255 * STIMULI[0]))
    table = tmp_path / "jobs.csv"
    table.write_text(f"model,stimulus,label\nnetwork,{tmp_path / 'clip.npz'},run\n")
    settings = jobs.Settings("leaps", CONFIG, stride=1)
    videos = []
    for again in (False, True):
        out = tmp_path / f"out{again}"
        start.traced.clear()
        record = jobs.execute(
            table, out, settings, 2, programs=ExecutableCache(tmp_path / "kept")
        )
        assert not record["errors"]
        assert bool(start.traced) != again
        with np.load(out / "rows" / "000" / "000000.npz") as file:
            videos.append(file["videos"])
    np.testing.assert_array_equal(*videos)


def made_of(model=None, config=CONFIG, objective=None):
    """What the engine says of a step."""
    heard = []

    class Listening:
        def compiled(self, function, arguments, devices, made_of):
            heard.append(described(made_of))
            if made_of[0] == "start":
                out = jax.eval_shape(function, *arguments)
                return types.SimpleNamespace(out_info=out)

    objective = objective or objectives.leaps(config).without("diversity")
    model = model or network(0)
    setup = update.make_setup(model, None, objective, config)
    engine.Engine(setup, ONE, Listening()).compile(1)
    return heard


@pytest.mark.parametrize(
    "changed",
    [
        {"config": dataclasses.replace(CONFIG, learning_rate=0.2)},
        {"config": dataclasses.replace(CONFIG, margin=0.3)},
        {"config": dataclasses.replace(CONFIG, steps_per_call=1)},
        {"config": dataclasses.replace(CONFIG, octaves=2)},
        {"objective": objectives.cross_entropy()},
        {"objective": 2 * objectives.cross_entropy()},
        {
            "model": dataclasses.replace(
                network(0), module=network(0).module.clone(remat=True)
            )
        },
        {
            "model": dataclasses.replace(
                network(0), spec=dataclasses.replace(network(0).spec, std=(0.5,) * 3)
            )
        },
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_settings_are_other_programs(changed):
    assert made_of() == made_of(model=network(1))
    assert not set(made_of()) & set(made_of(**changed))


def test_what_is_not_of_the_package_is_not_kept(tiny):
    mine = objectives.term("mine", lambda c: jnp.square(c.video).mean((1, 2, 3, 4)))
    tapped = dataclasses.replace(
        network(0), tap_filter=lambda m, name: name == "observe"
    )
    for changed in (
        {"objective": objectives.cross_entropy() + mine},
        {"objective": objectives.priming(lambda depth: 1 - depth)},
        {"model": tapped},
        {"model": tiny},
    ):
        with pytest.raises(LookupError):
            made_of(**changed)

    @functools.wraps(objectives.norm)
    def wrapped(x):
        return 2 * objectives.norm(x)

    with pytest.raises(LookupError):
        described(wrapped)


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
        compiled = self.programs.compiled(function, (x,), ONE, made_of)
        np.testing.assert_array_equal(compiled(x)["twice"], np.full(shape, 2))
        assert x.is_deleted(), "its memory was not given to the result"
        return self.traced


@pytest.fixture
def doubling(tmp_path):
    return Doubling(tmp_path / "kept")


def test_a_program_is_traced_once_and_still_takes_what_is_donated(doubling):
    assert [doubling() for _ in range(3)] == [1, 0, 0]


def test_cudnn_has_started_before_a_program_from_disk_runs(doubling, monkeypatch):
    """It cannot start inside of a graph; seen on an H200: "No DNN support"."""
    assert doubling() == 1
    started = []
    monkeypatch.setattr(executable_cache, "_start_cudnn", lambda: started.append(True))
    assert doubling() == 0 and not started
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert doubling() == 0 and started


def test_other_arguments_and_surroundings_are_other_programs(doubling, monkeypatch):
    assert doubling() == 1
    assert doubling(shape=(4,)) == 1
    assert doubling(dtype=jnp.bfloat16) == 1
    assert doubling(made_of=("doubling", 2)) == 1
    with jax.default_matmul_precision("default"):
        assert doubling() == 1
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " ")
        assert doubling() == 1
    with monkeypatch.context() as patch:
        patch.setattr(executable_cache, "_machine", lambda: "another")
        assert doubling() == 1
    assert doubling() == 0


def test_what_has_no_description_is_compiled_each_time(doubling, tmp_path):
    assert [doubling(made_of=object()) for _ in range(2)] == [1, 1]
    assert not kept(tmp_path)


def test_only_the_newest_programs_are_kept(doubling, tmp_path, monkeypatch):
    monkeypatch.setattr(executable_cache, "_MOST", 2)
    for shape in ((1,), (2,), (3,)):
        assert doubling(shape=shape) == 1
    assert len(kept(tmp_path)) == 2 and doubling(shape=(3,)) == 0


def test_what_came_from_the_cache_of_jax_is_whole(doubling, tmp_path):
    """On a CPU it cannot be written again."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        doubling(made_of=object())  # leaves it there
        assert any((tmp_path / "jax").iterdir())
        assert [doubling() for _ in range(2)] == [1, 0]
        assert jax.config.jax_enable_compilation_cache
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_sources_are_told_apart(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "one.py").write_text("x = 1")
    before = executable_cache._sources(tmp_path)
    assert executable_cache._sources(tmp_path) == before
    (tmp_path / "models" / "one.py").write_text("x = 2")
    assert executable_cache._sources(tmp_path) != before
    assert any("update.py" in line for line in executable_cache._machine().splitlines())


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


class RunsCode:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def evil(tmp_path: Path) -> bytes:
    return pickle.dumps((RunsCode(tmp_path / "proof"), None, None))


FORGED = {
    "unsigned": lambda program: program,
    "with a digest": lambda program: hashlib.sha256(program).digest() + program,
    "signed by another": lambda program: (
        hmac.digest(bytes(32), program, "sha256") + program
    ),
}


@pytest.mark.parametrize("damaged", [cut, flipped, lambda content: b""])
def test_a_damaged_file_is_written_anew(damaged, doubling, tmp_path, capsys):
    assert doubling() == 1
    (path,) = kept(tmp_path)
    path.write_bytes(damaged(path.read_bytes()))
    assert [doubling(), doubling()] == [1, 0]
    assert kept(tmp_path) == [path]
    assert one_line(capsys, str(path), "is not what this user wrote", "compiled anew")


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_program_of_another_never_runs(forged, doubling, tmp_path, capsys):
    assert doubling() == 1
    (path,) = kept(tmp_path)
    path.write_bytes(forged(evil(tmp_path)))
    assert [doubling(), doubling()] == [1, 0]
    assert not (tmp_path / "proof").exists()
    assert one_line(capsys, str(path), "is not what this user wrote", "compiled anew")


def test_one_program_does_not_run_in_place_of_another(doubling, tmp_path, capsys):
    assert doubling() == 1
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    assert doubling(made_of=("doubling", 2)) == 1
    (other,) = set(kept(tmp_path)) - {path}
    other.write_bytes(content)
    assert doubling(made_of=("doubling", 2)) == 1
    assert one_line(capsys, str(other), "is not what this user wrote")


def one_line(capsys, *parts: str) -> bool:
    (line,) = capsys.readouterr().err.splitlines()
    return line.startswith("compile cache: ") and all(part in line for part in parts)


def give_away(path: Path, monkeypatch) -> None:
    """Makes a file another user's; who is not root becomes another user."""
    if os.geteuid() == 0:
        os.chown(path, 4321, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4321)


def put_link(path: Path, monkeypatch) -> None:
    path.rename(path.parent.parent / "victim")
    path.symlink_to(path.parent.parent / "victim")


NOT_OWN = {
    "is another user's": give_away,
    "is open to others": lambda path, monkeypatch: path.chmod(0o622),
    "is a link": put_link,
}


@pytest.mark.parametrize("what", NOT_OWN)
def test_a_file_that_is_not_the_users_is_not_parsed(
    what, doubling, tmp_path, monkeypatch, capsys
):
    assert doubling() == 1
    (path,) = kept(tmp_path)
    monkeypatch.setattr(  # only the file counts here
        executable_cache, "_signature", lambda path, key, content: bytes(32)
    )
    path.write_bytes(bytes(32) + evil(tmp_path))
    with monkeypatch.context() as patch:
        NOT_OWN[what](path, patch)
        patch.setattr(files, "make_private", lambda folder: None)
        patch.setattr(executable_cache, "_secret", lambda: b"key")
        assert doubling() == 1
    assert not (tmp_path / "proof").exists()
    assert one_line(capsys, str(path), what, "compiled anew")
    assert not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    if what == "is a link":
        assert (tmp_path / "victim").read_bytes() == bytes(32) + evil(tmp_path)


def test_folder_key_and_files_are_private_under_any_umask(
    doubling, tmp_path, config_home, open_umask
):
    assert [doubling(), doubling()] == [1, 0]
    (path,) = kept(tmp_path)
    key = config_home / "leaps_jax" / "cache.key"
    assert len(key.read_bytes()) == 32 and list(key.parent.iterdir()) == [key]
    for private in (path, key):
        assert private.stat().st_mode & 0o777 == 0o600
    for folder in (path.parent, key.parent, config_home):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_users_have_different_keys(doubling, tmp_path, monkeypatch, capsys):
    assert doubling() == 1
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    assert [doubling(), doubling()] == [1, 0]
    assert one_line(capsys, "is not what this user wrote")


def to_all(path: Path) -> None:
    path.chmod(0o777)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:8])


UNUSABLE = {
    "folder open to others": ("kept", to_all, "is open to others"),
    "key open to others": ("key", to_all, "is open to others"),
    "folder of the key": ("home", to_all, "is open to others"),
    "key cut short": ("key", torn, "is damaged"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_cache_that_cannot_be_used_is_one_line(
    case, doubling, tmp_path, config_home, capsys
):
    assert doubling() == 1
    name, change, what = UNUSABLE[case]
    home = config_home / "leaps_jax"
    path = {"kept": tmp_path / "kept", "home": home, "key": home / "cache.key"}[name]
    change(path)
    assert [doubling(), doubling()] == [1, 1]
    assert one_line(capsys, str(path), what, "delete it")


def test_where_nothing_can_be_written_all_is_compiled(doubling, tmp_path, capsys):
    (tmp_path / "kept").write_text("a file")
    assert [doubling(), doubling()] == [1, 1]
    assert one_line(capsys, str(tmp_path / "kept"), "is no folder", "delete it")


def test_a_disk_that_can_only_be_read_gives_programs(
    doubling, tmp_path, monkeypatch, capsys
):
    assert doubling() == 1

    def refused(*of, **named):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "write", refused)
    monkeypatch.setattr(os, "utime", refused)
    assert doubling() == 0
    assert [doubling(shape=(4,)), doubling(shape=(5,))] == [1, 1]
    assert one_line(capsys, str(tmp_path / "kept"), "Read-only file system")


def test_files_of_others_in_the_folder_stay(doubling, tmp_path, monkeypatch):
    monkeypatch.setattr(executable_cache, "_MOST", 1)
    (tmp_path / "kept").mkdir(mode=0o700)
    mine = tmp_path / "kept" / "thesis.txt"
    mine.write_text("precious")
    os.utime(mine, (0, 0))
    assert [doubling(), doubling(shape=(4,))] == [1, 1]
    assert mine in kept(tmp_path) and len(kept(tmp_path)) == 2


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """The folder of JAX's cache that a command would choose under an environment."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def choose(**environment):
        for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        given = environment.get("JAX_COMPILATION_CACHE_DIR")  # read when JAX starts
        jax.config.update("jax_compilation_cache_dir", given and str(given))
        executable_cache.use_folder_of_user()
        return executable_cache.folder()

    yield choose
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("given", [None, "", "relative", "."])
def test_the_folder_is_never_one_of_the_current_folder(
    given, chosen, tmp_path, open_umask
):
    environment = {} if given is None else {"XDG_CACHE_HOME": given}
    folder = tmp_path / "home" / ".cache" / "leaps_jax"
    assert chosen(**environment) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    folder.chmod(0o755)  # as earlier versions made it
    assert chosen(**environment) == folder
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_ones_own_is_taken(chosen, tmp_path, capsys):
    assert chosen(XDG_CACHE_HOME=tmp_path) == tmp_path / "leaps_jax"
    own = tmp_path / "own"
    assert chosen(JAX_COMPILATION_CACHE_DIR=own) == own
    assert own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o755)
    (own / "program").touch(0o644)
    (tmp_path / "link").symlink_to(own)
    for path in (own, tmp_path / "link"):
        assert chosen(JAX_COMPILATION_CACHE_DIR=path) == path
    assert chosen(JAX_COMPILATION_CACHE_DIR="") is None
    assert not capsys.readouterr().err


def test_a_folder_that_others_can_write_to_is_one_line(chosen, tmp_path, capsys):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert chosen(JAX_COMPILATION_CACHE_DIR=shared) is None
    assert one_line(capsys, str(shared), "is open to others", "of your own")
    shared.chmod(0o755)
    (shared / "program").touch()
    (shared / "program").chmod(0o666)
    assert chosen(JAX_COMPILATION_CACHE_DIR=shared) is None
    assert one_line(capsys, str(shared / "program"), "is open to others")
    assert chosen(JAX_COMPILATION_CACHE_DIR="shared") is None
    assert one_line(capsys, "shared", "is no absolute path", "of your own")
    assert chosen(JAX_COMPILATION_CACHE_DIR=shared / "program") is None
    assert one_line(capsys, "program", "is no folder", "of your own")


def test_a_folder_of_another_user_is_one_line(chosen, tmp_path, monkeypatch, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    give_away(theirs, monkeypatch)
    assert chosen(JAX_COMPILATION_CACHE_DIR=theirs) is None
    assert one_line(capsys, str(theirs), "is another user's", "of your own")


def test_a_folder_that_can_only_be_read_is_no_warning_of_jax(
    chosen, tmp_path, monkeypatch, recwarn
):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        folder = chosen(XDG_CACHE_HOME=tmp_path)
        compilation_cache.reset_cache()
        tried = []

        def refused(*of):
            tried.append(of)
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(lru_cache.LRUCache, "put", refused)
        assert jax.jit(lambda x: x + 4321)(1) == 4322
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
        compilation_cache.reset_cache()
    assert tried and folder.is_dir() and not recwarn.list


def test_a_user_without_a_home_is_one_line(chosen, monkeypatch, capsys):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert chosen() is None
    assert one_line(capsys, "home directory", "JAX_COMPILATION_CACHE_DIR")


def test_descriptions_tell_what_was_closed_over():
    made = [objectives.coherence(0.1), objectives.coherence(0.2)]
    made += [objectives.priming(), objectives.cross_entropy(), objectives.l2()]
    assert len({described(objective) for objective in made}) == len(made)
    assert described(objectives.coherence(0.1)) == described(made[0])


def test_the_command_keeps_programs_from_process_to_process(tmp_path):
    loading.save(network(0), tmp_path / "weights")
    np.savez(tmp_path / "clip.npz", video=(255 * STIMULI[0]).astype(np.uint8))
    words = ["--model", "timesformer_small@weights", "--label", "bend", "run"]
    words += ["--stimulus", "clip.npz", "--short", "loop", "--steps", "4"]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "XDG_CACHE_HOME": str(tmp_path),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_LOG_COMPILES": "1",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    videos, lowered = [], []
    for out in ("first", "second"):
        ended = subprocess.run(
            [sys.executable, "-m", "leaps_jax", "synthesize", "--out", out, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert ended.returncode == 0, ended.stderr
        videos.append(np.load(tmp_path / out / "videos.npz")["videos"])
        lowered.append(re.findall(r"MLIR module conversion (\S+)", ended.stderr))
        assert len(list((tmp_path / "leaps_jax" / "programs").iterdir())) == 2
    assert [names.count("jit(_fun)") for names in lowered] == [2, 0]
    # nor is a key made, for a network that nobody initialises
    assert not any("jit(_threefry_seed)" in names for names in lowered)
    np.testing.assert_array_equal(*videos)


def test_a_step_of_a_gpu_is_one_graph_unless_flags_say_otherwise(monkeypatch):
    names = {"xla_gpu_enable_command_buffer", "xla_gpu_command_buffer_scheduling_mode"}

    class Function:
        def lower(self, *arguments):
            # XLA knows these options, and takes them on any machine
            lowered = jax.jit(jnp.sin).lower(*arguments)
            given = lowered.compile

            def compile_with(compiler_options):
                self.options = compiler_options
                return given(compiler_options=compiler_options)

            lowered.compile = compile_with
            return lowered

    function = Function()
    executable_cache.compile_for(function, 1.0)
    assert function.options == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert executable_cache.compile_for(function, 1.0)(1.0) == pytest.approx(
        np.sin(1.0)
    )
    assert function.options.keys() == names
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_command_buffer_scheduling_mode=LHS")
    executable_cache.compile_for(function, 1.0)
    assert function.options.keys() == {"xla_gpu_enable_command_buffer"}
