"""`leaps-jax models`: the zoo as JSON and as a table."""

import json

from leaps_jax.zoo import build as zoo


def test_models_as_json_and_as_a_table(call):
    rows = json.loads(call("models", "--json").out)
    assert [row["name"] for row in rows] == zoo.names()
    wanted = {"name", "parameters", "gmacs", "taps", "namings", "licence"}
    assert all(wanted <= row.keys() for row in rows)
    table = call("models")
    assert table.code == 0 and not table.err
    lines = table.out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in zoo.names():
        assert any(line.split()[:1] == [name] for line in lines)
    assert lines.index("  vivit_small@robust") < 10


def test_all_of_one_model(call):
    told = call("models", "timesformer").out
    for text in ("121.57 M", "CC BY-NC 4.0", "https://", "--model timesformer@"):
        assert text in told
    assert "slow_r50_tiny@robust" in call("models", "slow_r50_tiny").out
    refused = call("models", "timesfromer")
    assert refused.code == 2 and "did you mean timesformer" in refused.err
