"""Judges that took part in making a run are marked."""

from leaps_jax import Model, ModelSpec
from leaps_jax.runs import comparison


def test_marks_come_from_the_settings_and_weights_of_a_run():
    def named(name: str) -> Model:
        return Model(None, {}, ModelSpec(name, 4, 16, ("walk", "run")))

    judges = {f"{n}@{w}": named(n) for n in ("a", "b", "c") for w in ("one", "two")}
    digests = {name: name.upper() for name in judges}
    run = {"settings": {"model": "a@one", "verifier": "b@one"}, "identity": {}}
    expected = {"a@one": "self", "a@two": "twin"}
    expected |= {"b@one": "verifier", "b@two": "verifier twin"}
    assert comparison.marks(run, judges, digests) == expected
    # the weights decide, wherever they lie today
    weights = {"weights of the model": "A@TWO", "weights of the verifier": "B@ONE"}
    moved = comparison.marks(run | {"identity": weights}, judges, digests)
    assert moved == expected | {"a@one": "twin", "a@two": "self"}
    alone = {"settings": {"model": "c@one", "verifier": None}, "identity": {}}
    assert set(comparison.marks(alone, judges, digests)) == {"c@one", "c@two"}
    assert comparison.marks({"settings": {}, "identity": {}}, judges, digests) == {}
