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
    for name in zoo.names():
        assert any(line.split()[0] == name for line in table.out.splitlines())
