"""Weights of the Hugging Face hub: what is fetched, what is refused, what is said."""

import dataclasses
import errno
import json
import os
import shutil
from collections import namedtuple

import jax
import numpy as np
import published
import pytest
from servers import Repo, as_hub, forget_client

from leaps_jax import Model
from leaps_jax.errors import UserError
from leaps_jax.zoo import addresses, references
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import hub as client
from leaps_jax.zoo import load as loading

pytest.importorskip("huggingface_hub")

X = b"x" * 20_000


@pytest.fixture
def hub(tmp_path):
    with as_hub(tmp_path / "hf") as found:
        yield found


@pytest.fixture
def small():
    """A network of one block with weights that differ."""
    given = {"frames": 4, "size": 32, "depth": 1, "width": 48, "stem": (4, 8)}
    module, spec = zoo.build("timesformer_small", ("left", "right"), **given)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32),
        zoo.variable_shapes(module),
    )
    return Model(module, variables, spec)


def contents(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def fetch(text):
    return references.fetch(addresses.parse(text))


def test_a_checkpoint_of_a_repository_is_that_of_a_folder(hub, small, tmp_path, capfd):
    folder = loading.save(small, tmp_path / "m")
    other = {"README.md": b"# hi", "run.py": b"1/0"}
    hub.repos["me/x"] = repo = Repo(contents(folder) | other)
    reference = "timesformer_small@hf:me/x"
    model = loading.load_model(reference)
    jax.tree.map(np.testing.assert_array_equal, model.variables, small.variables)
    assert model.spec.source == f"{hub.address}/me/x/tree/{repo.main}"
    assert references.pinned(reference) == f"{reference}@{repo.main}"
    local = f"timesformer_small@{folder}"
    assert references.fingerprint(reference) == references.fingerprint(local)
    (folder / "README.md").write_text("# hi")
    assert references.fingerprint(reference) == references.fingerprint(local)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("downloading hf:me/x (0.") and line.endswith(" MiB)")
    assert not [line for line in hub.asked if "run.py" in line or "README" in line]

    damaged = contents(folder)
    facts = json.loads(damaged["model.json"])
    first = min(facts["digests"])
    facts["digests"][first] = "0" * 64
    hub.repos["me/torn"] = Repo(damaged | {"model.json": json.dumps(facts).encode()})
    with pytest.raises(UserError, match=f"1 tensors are damaged: {first}"):
        loading.load_model("timesformer_small@hf:me/torn")
    with pytest.raises(UserError, match="not of x3d_xs; write timesformer_small@"):
        loading.load_model("x3d_xs@hf:me/x")


def test_a_published_file_of_a_repository_converts(hub, tmp_path):
    from parity import weights

    published.save(tmp_path / "X.pyth", weights("ptv_x3d_xs"), "model_state")
    hub.repos["me/x3d"] = repo = Repo({"X.pyth": (tmp_path / "X.pyth").read_bytes()})
    model = loading.load_model("x3d_xs@hf:me/x3d")
    page = f"{hub.address}/me/x3d/blob/{repo.main}/X.pyth"
    assert model.spec.source == f"{page} (pytorchvideo)"
    local = references.fingerprint(f"x3d_xs@{tmp_path / 'X.pyth'}")
    assert references.fingerprint("x3d_xs@hf:me/x3d") == local


def test_no_pickle_of_the_hub_is_run(hub, tmp_path):
    import pickle

    class RunsCode:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'proof'}",)

    hub.repos["me/evil"] = Repo({"w.pkl": pickle.dumps({"blobs": RunsCode()})})
    with pytest.raises(UserError, match="refused, its pickle asks for"):
        loading.load_model("slow_r50@hf:me/evil")
    assert not (tmp_path / "proof").exists()


# files of a repository, what is asked for, and what is read
CHOICES = {
    "safetensors before torch": (
        ["pytorch_model.bin", "model.safetensors"],
        ("", "model.safetensors", ["model.safetensors"]),
    ),
    "a file that is named": (
        ["pytorch_model.bin", "model.safetensors"],
        ("pytorch_model.bin", "pytorch_model.bin", ["pytorch_model.bin"]),
    ),
    "safetensors of any name": (
        ["a.pyth", "weights.safetensors"],
        ("", "weights.safetensors", ["weights.safetensors"]),
    ),
    "shards": (
        ["model.safetensors.index.json", "model-1.safetensors", "config.json"],
        ("", "", ["model.safetensors.index.json", "model-1.safetensors"]),
    ),
    "the only torch file": (["a.pyth", "train.py"], ("", "a.pyth", ["a.pyth"])),
    "a folder": (["a/m.pth", "b/m.pth"], ("b", "b/m.pth", ["b/m.pth"])),
    "a checkpoint below": (
        ["s/model.json", "s/variables/d", "s/x.md", "model.safetensors"],
        ("s", "s", ["s/model.json", "s/variables/d"]),
    ),
    "model.json of another project": (
        ["model.json", "model.safetensors"],
        ("", "model.safetensors", ["model.safetensors"]),
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_which_files_are_taken(case):
    names, (asked, path, chosen) = CHOICES[case]
    address = addresses.HubAddress("me/x", asked)
    assert client.choose(names, address) == (path, chosen)


NOT_CHOSEN = {
    "several": (["b.pth", "a.pyth"], "", "2 files of weights: a.pyth, b.pth; name one"),
    "none": (["README.md"], "", "no weights"),
    "a file that is not there": (["x3d.pyth"], "x3d.pth", "did you mean x3d.pyth"),
    "names that lead out": (
        ["../x.pyth", "a/../../x.pyth"],
        "",
        "no x|no weights|has no",
    ),
}


@pytest.mark.parametrize("case", NOT_CHOSEN)
def test_which_repositories_are_refused(case):
    names, asked, said = NOT_CHOSEN[case]
    with pytest.raises(UserError, match=said):
        client.choose(names, addresses.HubAddress("me/x", asked))


def test_a_revision_is_that_commit_and_a_branch_is_what_it_is_now(hub):
    hub.repos["me/x"] = repo = Repo({"w.pth": X})
    first = repo.main
    second = repo.commit({"w.pth": X[::-1] + b"2"})
    assert fetch("hf:me/x").pinned.revision == second
    old = fetch(f"hf:me/x/w.pth@{first}")
    assert old.path.read_bytes() == X
    assert str(old.pinned) == f"hf:me/x/w.pth@{first}"
    asked = len(hub.asked)
    assert fetch("hf:me/x").pinned.revision == second
    assert len(hub.asked) == asked, "a process asks once"
    references.fetch.cache_clear()
    fetch("hf:me/x")
    assert not [line for line in hub.asked[asked:] if "resolve" in line], "it is here"


def test_without_a_network_the_cache_serves(hub, tmp_path, monkeypatch, capfd):
    torn = {"torn/model.json": b"{}", "torn/variables/d": X}
    hub.repos["me/x"] = repo = Repo({"w.pth": X} | torn)
    fetch("hf:me/x")
    fetch("hf:me/x/torn")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forget_client()
    hub.asked.clear()
    assert fetch("hf:me/x").pinned.revision == repo.main
    (path,) = [p for p in (tmp_path / "hf").rglob("model.json") if p.is_symlink()]
    path.unlink()  # as where a download was cut
    for reference in ("hf:me/y", "hf:me/x/torn", "hf:me/x@v2"):
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set and .* unset it"):
            fetch(reference)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        client.push({"model.json": b"{}"}, addresses.parse("hf:me/y"))
    assert not hub.asked
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    forget_client()
    capfd.readouterr()
    assert fetch("hf:me/x").pinned.revision == repo.main
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"the hub cannot be reached; hf:me/x as it was at {repo.main}"
    with pytest.raises(OSError, match="connection to the hub failed") as error:
        fetch("hf:me/y")
    assert error.value.filename == "hf:me/y"


REFUSED = {
    "no repository": ("hf:me/none", "me/none: there is none, or it is private"),
    "private": (
        "hf:me/private",
        "there is none, or it is private; check the name, or log in with `hf auth",
    ),
    "gated": ("hf:me/gated", "is gated: accept its terms at http.*/me/gated, then log"),
    "no revision": ("hf:me/x@v2", "has no revision v2; leave it out"),
    "no file": ("hf:me/x/v.pth", "has no v.pth; did you mean w.pth"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_refuses_is_one_line(hub, case):
    hub.repos["me/x"] = Repo({"w.pth": X})
    hub.repos["me/private"] = Repo({"w.pth": X}, private=True)
    hub.repos["me/gated"] = Repo({"w.pth": X}, gated=True)
    reference, said = REFUSED[case]
    with pytest.raises(UserError, match=said) as error:
        loading.load_model(f"slow_r50@{reference}", argument="verifier")
    assert str(error.value).startswith(f"verifier='slow_r50@{reference}': ")
    assert "\n" not in str(error.value)


def test_a_token_opens_what_is_private(hub, monkeypatch):
    hub.repos["me/private"] = Repo({"w.pth": X}, private=True)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert fetch("hf:me/private").path.read_bytes() == X


def test_a_cut_connection_is_taken_up_again_and_then_told(hub, monkeypatch):
    hub.repos["me/x"] = Repo({"w.pth": X})
    hub.cut.add("w.pth")
    import huggingface_hub.file_download as download

    monkeypatch.setattr(download.time, "sleep", lambda _: hub.cut.clear())
    assert fetch("hf:me/x").path.read_bytes() == X

    hub.repos["me/y"] = Repo({"v.pth": X + b"y"})
    hub.cut.add("v.pth")
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with pytest.raises(OSError, match="connection to the hub failed") as error:
        fetch("hf:me/y")
    assert error.value.filename == "hf:me/y" and "\n" not in error.value.strerror


def test_another_content_than_the_hub_says_is_refused(hub):
    hub.repos["me/x"] = Repo({"w.pth": X})
    hub.changed["w.pth"] = X[:-1] + b"!"
    with pytest.raises(UserError, match=r"w\.pth: is damaged; delete .* start again"):
        fetch("hf:me/x")


def test_no_room_is_told_before_anything_is_asked_for(hub, monkeypatch):
    hub.repos["me/x"] = Repo({"w.pth": X})
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(OSError, match="No space left on device .*0 MiB are") as error:
        fetch("hf:me/x")
    assert error.value.errno == errno.ENOSPC
    assert not [line for line in hub.asked if "resolve" in line]


def test_too_large_is_refused_before_anything_is_asked_for(hub, monkeypatch):
    hub.repos["me/x"] = Repo({"w.pth": X})
    monkeypatch.setattr("leaps_jax.zoo.download.MOST_BYTES", 10_000)
    with pytest.raises(UserError, match="GiB are fetched; download it yourself"):
        fetch("hf:me/x")
    assert not [line for line in hub.asked if "resolve" in line]


def test_without_the_client_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    references.fetch.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'leaps_jax\[hub\]'"):
        loading.load_model("x3d_xs@hf:me/x")


def test_a_push_comes_back_and_replaces_only_when_asked(
    hub, small, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("HF_TOKEN", "secret")
    first = contents(loading.save(small, tmp_path / "one")) | {"x.bin": X}
    to = addresses.parse("hf:me/new")
    assert client.push(first, to, private=True) == f"{hub.address}/me/new"
    assert hub.repos["me/new"].facts["private"]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, small.variables)
    other = dataclasses.replace(small, variables=doubled)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("uploading ") and line.endswith(" MiB)")
    second = contents(loading.save(other, tmp_path / "two"))
    with pytest.raises(UserError, match="it has a model.json; --overwrite"):
        client.push(second, to)
    client.push(second, to, overwrite=True)
    _, files = hub.repos["me/new"].at("main")
    assert files == second | {"x.bin": X}, "nothing of the first model is left"
    model = loading.load_model("timesformer_small@hf:me/new")
    jax.tree.map(np.testing.assert_array_equal, model.variables, doubled)


def test_a_push_to_where_one_may_not(hub, monkeypatch):
    with pytest.raises(UserError, match="may not write there; log in"):
        client.push({"model.json": b"{}"}, addresses.parse("hf:me/x"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    with pytest.raises(UserError, match="may not write there"):
        client.push({"model.json": b"{}"}, addresses.parse("hf:them/x"))
