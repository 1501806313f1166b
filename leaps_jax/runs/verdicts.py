"""What judges see in a video, for a page: from what run.json says of all."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from leaps_jax.runs import command

#: Roles of models that took part in a run, and what a reader is told that they are.
PARTS = {"self": "the inverted network", "verifier": "the verifier"}


@dataclasses.dataclass(frozen=True)
class Bar:
    """A class and its probability; `right` for the class that was asked for."""

    name: str
    share: float
    right: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a judge sees in a video, the likeliest class first."""

    role: str
    bars: tuple[Bar, ...]

    @property
    def part(self) -> str:
        """What it was in the run, if anything else than a judge."""
        return PARTS.get(self.role, "")

    @property
    def right(self) -> bool:
        return self.bars[0].right


@dataclasses.dataclass(frozen=True)
class Seen:
    """What all judges see in a video.

    Attributes:
      verdicts: one of each judge.
      asked: whether a class was asked for, which a judge can agree on.
    """

    verdicts: tuple[Verdict, ...]
    asked: bool = True

    @classmethod
    def of(
        cls, judges: Mapping[str, Mapping[str, Any]], number: int, right: str
    ) -> "Seen":
        """Of the video with a number.

        Args:
          judges: of run.json, by their roles in the run or their references.
          number: of the video.
          right: its class, which has a bar even where it is not among the likeliest;
            what its objective looks at where no class was asked for.
        """
        counted = all(v.get("correct", 0) is not None for v in judges.values())
        found = []
        for role, verdict in judges.items():
            seen = (verdict["seen"][number], verdict["confidence"][number])
            tops = verdict.get("top")  # earlier versions wrote none
            top = tops[number] if tops else [seen]
            bars = [Bar(name, share, name == right) for name, share in top]
            asked = verdict["asked"][number] if verdict.get("asked") else None
            if asked is not None and not any(bar.right for bar in bars):
                bars.append(Bar(right, asked, True))
            found.append(Verdict(command.portable(role), tuple(bars)))
        return cls(tuple(found), counted)

    @property
    def sure(self) -> float | None:
        """The probability that the inverted network itself gives to the class."""
        bars = [bar for v in self.verdicts if v.role == "self" for bar in v.bars]
        return next((bar.share for bar in bars if bar.right), None)

    @property
    def others(self) -> int:
        """Judges beside the models that took part in the run."""
        return sum(not verdict.part for verdict in self.verdicts)

    @property
    def agree(self) -> int:
        """How many of these see the class."""
        return sum(v.right for v in self.verdicts if not v.part)
