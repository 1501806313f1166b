"""Evaluates finished runs with the same judges.

>>> report = compare({"run/": results.read(Path("run/"))}, judges)  # doctest: +SKIP
>>> report["runs"]["run/"]["held_out"]["videos"]["top1"]            # doctest: +SKIP
{'value': 0.87, 'low': 0.74, 'high': 0.96}
"""

from collections.abc import Callable, Mapping
from typing import Any

from leaps_jax import evaluation
from leaps_jax.evaluation.judges import Partners
from leaps_jax.evaluation.tables import MEANINGS
from leaps_jax.model import Model
from leaps_jax.runs import ownership
from leaps_jax.zoo.checkpoints import digest


def compare(
    finished: Mapping[str, Mapping[str, Any]],
    judges: Mapping[str, Model],
    partners: Partners | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Evaluates runs, each with its own judges marked.

    Args:
      finished: what `runs.results.read` gives, by name.
      judges: by their references `NAME@WEIGHTS`.
      partners: see `evaluation.evaluate`.
      progress: called with how many of `questions` are answered.

    Returns:
      `versions`, `meanings` of the numbers, and in `runs`, by name, what
      `evaluation.evaluate` found with the run's `model` and `verifier`.
    """
    done = 0

    def answered() -> None:
        nonlocal done
        done += 1
        progress(done)

    digests = {name: digest(model.variables) for name, model in judges.items()}
    found: dict[str, Any] = {}
    for name, run in finished.items():
        models = {key: run["settings"].get(key) for key in ("model", "verifier")}
        found[name] = models | evaluation.evaluate(
            run["videos"],
            run["classes"],
            judges,
            stimuli=run["stimuli"] if len(run["stimuli"]) else None,
            saved=run.get("saved"),
            partners=partners,
            marks=marks(run, judges, digests),
            progress=answered,
        )
    return {"versions": ownership.versions(), "meanings": MEANINGS, "runs": found}


def questions(
    finished: Mapping[str, Mapping[str, Any]], judges: Mapping[str, Model]
) -> int:
    """The number of questions: one for each run, judge and source of videos."""
    asked = 0
    for run in finished.values():
        asked += 2 + bool(len(run["stimuli"])) + (run.get("saved") is not None)
    return len(judges) * asked


def marks(
    run: Mapping[str, Any], judges: Mapping[str, Model], digests: Mapping[str, str]
) -> dict[str, str]:
    """The judges that took part in making a run, or are near to one that did.

    Args:
      run: from `runs.results.read`. Its weights are known by their digests; by their
        references, where it has none.
      judges: by reference.
      digests: of their weights.

    Returns:
      {judge: "self", "verifier", or "twin" and "verifier twin" for the same network of
      the zoo with other weights: one fine-tuned from the other is fooled with it}.
    """
    settings, identity = run["settings"], run["identity"]
    found = {}
    for name in judges:
        for role, mark in (("model", "self"), ("verifier", "verifier")):
            reference = settings.get(role)
            if not reference or name in found:
                continue
            known = identity.get(f"weights of the {role}")
            if digests[name] == known if known else name == reference:
                found[name] = mark
    for name, judge in judges.items():
        for role, mark in (("model", "twin"), ("verifier", "verifier twin")):
            reference = settings.get(role)
            if reference and judge.spec.name == reference.partition("@")[0]:
                found.setdefault(name, mark)
    return found
