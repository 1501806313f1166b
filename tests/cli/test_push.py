"""`leaps-jax push`, and commands that take weights of the hub."""

import json
import re
import shutil

import pytest
from command import GOOD, record, words_of
from servers import Repo, as_hub

from leaps_jax.zoo import references

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with as_hub(tmp_path / "hf") as found:
        monkeypatch.setenv("HF_TOKEN", "secret")
        yield found


MODEL = "timesformer_small@{root}/weights"


def front_matter(card):
    yaml = pytest.importorskip("yaml")
    _, facts, text = card.split("---\n", 2)
    return yaml.safe_load(facts), text


def test_push_prints_the_address_of_a_model_with_a_card(call, hub):
    ran = call("push", MODEL, "hf:me/jacks", "--licence", "Apache-2.0")
    assert ran.code == 0, ran.err
    assert ran.out == f"{hub.address}/me/jacks\n"
    assert re.fullmatch(r"uploading 1\d files \(0\.\d MiB\)\n", ran.err)
    _, files = hub.repos["me/jacks"].at("main")
    facts, text = front_matter(files["README.md"].decode())
    assert facts["license"] == "apache-2.0" and facts["library_name"] == "leaps_jax"
    assert "video-classification" in facts["tags"]
    assert 'lj.load_model("timesformer_small@hf:me/jacks")' in text
    assert "Licence: Apache-2.0." in text and "unknown" not in text
    assert "bend, jack, run" in text
    assert json.loads(files["model.json"])["spec"]["licence"] == "Apache-2.0"
    assert "it has a" in call("push", MODEL, "hf:me/jacks").err, "a second time"
    assert call("push", MODEL, "hf:me/jacks", "--overwrite").code == 0


def test_a_licence_that_is_unknown_is_warned_of(call, hub):
    ran = call("push", MODEL, "hf:me/jacks")
    assert "licence of these weights is unknown" in ran.err and "--licence" in ran.err
    card = hub.repos["me/jacks"].at("main")[1]["README.md"].decode()
    facts, text = front_matter(card)
    assert facts["license"] == "unknown"
    assert "> **The licence of these weights is unknown." in text


def test_a_card_tells_the_training_and_no_folder_of_this_machine(call, hub, root):
    folder = root / "private weights"
    shutil.copytree(root / "weights", folder)
    facts = json.loads((folder / "model.json").read_text())
    facts["spec"]["source"] = "/home/me/x.pyth (official)"
    facts["spec"]["classes"] = ["<script>", "# jack", "`run`"]
    command = "leaps-jax train --data /home/me/clips --out /home/me/out"
    facts["extra"] = {"command": command, "data": "/home/me/clips", "steps": 7}
    (folder / "model.json").write_text(json.dumps(facts))
    words = [f"timesformer_small@{folder}", "hf:me/x", "--licence", "My: own"]
    assert call("push", *words).code == 0
    _, files = hub.repos["me/x"].at("main")
    assert b"/home" not in files["model.json"] + files["README.md"]
    facts, text = front_matter(files["README.md"].decode())
    assert facts["license"] == "other" and facts["license_name"] == "My: own"
    assert "    leaps-jax train --data clips --out out" in text
    assert "- steps: 7" in text and "- data: clips" in text
    assert "\\<script\\>, \\# jack, \\`run\\`" in text


REFUSED = {
    "no address": ([MODEL, "me/x"], ["to='me/x'", "write hf:OWNER/REPO"]),
    "no repository": ([MODEL, "hf:me"], ["to='hf:me'", "write hf:OWNER/REPO"]),
    "a file": ([MODEL, "hf:me/x/w.pth"], ["to='hf:me/x/w.pth'", "hf:me/x"]),
    "damaged": (["timesformer_small@{root}/torn", "hf:me/x"], ["model=", "missing"]),
    "another's": ([MODEL, "hf:them/x"], ["to='hf:them/x'", "may not write there"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_push_refuses(call, hub, case):
    words, expected = REFUSED[case]
    refused = call("push", *words)
    assert refused.code == 2 and not refused.out
    for part in expected:
        assert part in refused.err
    assert not hub.repos


def test_a_run_from_the_hub_names_the_commit_and_resumes_by_content(call, hub, root):
    folder = root / "weights"
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}
    hub.repos["me/x"] = repo = Repo(files)
    reference, out = "timesformer_small@hf:me/x", root / "from the hub"
    words = words_of("synthesize", GOOD, model=reference, out=out)
    assert call(*words).code == 0
    first = repo.main
    assert record(out)["settings"]["pinned"] == {reference: f"{reference}@{first}"}
    assert f"--model {reference}@{first}" in (out / "index.html").read_text()

    repo.commit(files | {"README.md": b"a card"})  # the same weights
    references.fetch.cache_clear()
    assert "is finished" in call(*words).out
    walkers = root / "permuted"
    paths = [path for path in walkers.rglob("*") if path.is_file()]
    repo.commit({p.relative_to(walkers).as_posix(): p.read_bytes() for p in paths})
    references.fetch.cache_clear()
    refused = call(*words)
    assert refused.code == 2 and "weights of the model" in refused.err


def test_a_command_says_in_one_line_that_the_hub_is_away(call, hub, root):
    hub.routes[:] = [("/.*", lambda handler: handler.answer(503))]
    import huggingface_hub.utils._http as http

    model = {"model": "timesformer_small@hf:me/x", "out": "{root}/away"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.time, "sleep", lambda _: None)
        failed = call(*words_of("synthesize", GOOD, **model))
    assert failed.code == 1 and not failed.out
    (line,) = failed.err.splitlines()
    assert line.startswith("leaps-jax: failed: hf:me/x: the hub answers 503; see to")
