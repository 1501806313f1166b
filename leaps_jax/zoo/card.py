"""The model card of weights: README.md of a repository on the Hugging Face hub."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from leaps_jax.model import ModelSpec
from leaps_jax.zoo import build as zoo

#: What licences are called here, in small letters, and on the hub. Others are "other"
#: there, with their name beside.
_LICENCES = {
    "apache-2.0": "apache-2.0",
    "bsd-3-clause": "bsd-3-clause",
    "mit": "mit",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc by-nc 4.0, non-commercial": "cc-by-nc-4.0",
    "cc0-1.0": "cc0-1.0",
}
UNKNOWN = (
    "The licence of these weights is unknown. Ask whoever published them before you use"
    " them."
)
_SHOWN = 400  # classes


def card(
    spec: ModelSpec, address: str, licence: str, training: Mapping[str, Any]
) -> str:
    """The text of a model card.

    Args:
      spec: of the model.
      address: of the repository, as after the @ of a reference.
      licence: of the weights; "" where it is unknown.
      training: what model.json knows of how they were trained; {} for nothing.
    """
    title = zoo.entry(spec.name).title
    reference = f"{spec.name}@{address}"
    parts = [
        _front_matter(licence),
        f"# {title}, weights for leaps_jax",
        f"A video classifier ({title}) of {spec.num_classes} classes. It takes"
        f" {spec.frames} frames of {spec.size}x{spec.size} pixels, every"
        f" {spec.stride}th of a clip of 30 a second.",
        f"> **{UNKNOWN}**" if not licence else f"Licence: {_plain(licence)}.",
        "## Use",
        "```python\nimport leaps_jax as lj\n\n"
        f'model = lj.load_model("{reference}")\n```',
        "To see what it has learnt:",
        f"```bash\npip install 'leaps_jax[hub]'\nleaps-jax synthesize --model"
        f" {reference} \\\n    --stimulus clip.mp4 --label CLASS --out run/\n```",
        "## Training",
        *_training(spec, training),
        "## Classes",
        _listed(spec.classes),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(licence: str) -> str:
    """What the hub reads, in YAML, of which JSON is a part."""
    known = _LICENCES.get(licence.lower(), "other" if licence else "unknown")
    facts: dict[str, Any] = {"license": known}
    if known == "other":
        facts["license_name"] = licence
    facts |= {
        "library_name": "leaps_jax",
        "pipeline_tag": "video-classification",
        "tags": ["leaps_jax", "jax", "flax", "video-classification"],
    }
    lines = [f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in facts.items()]
    return "\n".join(["---", *lines, "---"])


#: Of a record of training: the key and what it is called.
_TOLD = {
    "data": "data",
    "eval_data": "evaluated on",
    "steps": "steps",
    "accuracy": "accuracy",
    "robust_accuracy": "accuracy under attack",
    "device": "device",
    "from": "started from",
}


def _training(spec: ModelSpec, training: Mapping[str, Any]) -> list[str]:
    rows = [
        f"- {said}: {_plain(str(training[key]))}"
        for key, said in _TOLD.items()
        if training.get(key) not in (None, "")
    ]
    found = ["\n".join(rows)] if rows else []
    if command := training.get("command"):
        found += ["Trained with", f"    {' '.join(str(command).split())}"]
    if spec.source:
        found.append(f"Converted from {_plain(spec.source)}.")
    return found or ["Nothing is known of how these weights were trained."]


def _listed(classes: Sequence[str]) -> str:
    rest = len(classes) - _SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(map(_plain, classes[:_SHOWN])) + more


def _plain(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#!&~])", r"\\\1", " ".join(text.split()))
