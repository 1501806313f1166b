"""`leaps-jax push`: uploads a checkpoint to the Hugging Face hub."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from leaps_jax.cli import arguments
from leaps_jax.errors import UserError
from leaps_jax.runs import command
from leaps_jax.zoo import addresses, card, checkpoints, hub, references
from leaps_jax.zoo import load as loading


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "push",
        run,
        "Upload a checkpoint to the Hugging Face hub, with a model card.",
        "leaps-jax push x3d_xs@weights/x3d_xs hf:me/x3d_xs --licence Apache-2.0",
    )
    sub.add_argument(
        "model",
        metavar="NAME@WEIGHTS",
        help="a network and a checkpoint folder; `leaps-jax convert` makes one of other"
        " weights",
    )
    sub.add_argument(
        "to", metavar="hf:OWNER/REPO", help="the repository, made if it is missing"
    )
    sub.add_argument(
        "--private",
        action="store_true",
        help="if the repository is made, nobody but its owner sees it",
    )
    sub.add_argument(
        "--licence",
        metavar="NAME",
        help="the licence of the weights, such as Apache-2.0; the one that the"
        " checkpoint names by default",
    )
    arguments.add_overwrite(sub)


def run(options: argparse.Namespace) -> int:
    """Uploads the checkpoint and prints its address."""
    given = f"to={options.to!r}"
    try:
        address = addresses.parse(options.to)
    except UserError as error:
        raise UserError(f"{given}: {error}") from None
    if not isinstance(address, addresses.HubAddress):
        raise UserError(f"{given}: write hf:OWNER/REPO")
    if address.path or address.revision:
        raise UserError(f"{given}: name a repository alone, hf:{address.repo}")
    model = loading.load_model(options.model)  # refuses what is damaged
    folder = references.located(options.model).path
    if not checkpoints.is_model(folder):
        raise UserError(
            f"model={options.model!r}: is no checkpoint; make one with `leaps-jax"
            " convert`"
        )
    facts = _public(json.loads((folder / "model.json").read_bytes()))
    stated = model.spec.licence
    licence = options.licence if options.licence is not None else stated
    if stated and licence != stated:
        print(f"the checkpoint says that its licence is {stated}", file=sys.stderr)
    if not licence:
        print(f"{card.UNKNOWN} Tell it with --licence.", file=sys.stderr)
    facts["spec"]["licence"] = licence
    spec = type(model.spec)(**facts["spec"])
    text = card.card(spec, str(address), licence, facts["extra"])
    contents: dict[str, Path | bytes] = {
        file.relative_to(folder).as_posix(): file
        for file in checkpoints.files_of(folder)
    }
    contents["model.json"] = json.dumps(facts, indent=1, ensure_ascii=False).encode()
    contents["README.md"] = text.encode()
    how = {"private": options.private, "overwrite": options.overwrite}
    try:
        print(hub.push(contents, address, **how))
    except UserError as error:
        raise UserError(f"{given}: {error}") from None
    return 0


def _public(value: Any) -> Any:
    """A value of model.json in which no path tells the folders of this machine."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, str):
        return "".join(map(command.portable, re.split(r"(\s+)", value)))
    return value
