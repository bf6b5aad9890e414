"""What a fault is: something that goes wrong at some moment of a run."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from tests.chaos.stage import Run, Stage

#: When in a run: while chunks are under way, while the fit is, or while the plots are drawn.
Moment = Literal["chunks", "fit", "drawing"]


class Fault(ABC):
    """Something that goes wrong.

    ``kind`` is what it is counted under; ``felt_by`` the service, as progress
    names it, whose next progress shows that the fault is over.
    """

    kind: str
    moment: Moment = "chunks"
    felt_by: str = "analysis"

    @property
    def name(self) -> str:
        return self.kind + ("" if self.moment == "chunks" else f" ({self.moment})")

    @abstractmethod
    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        """Let it happen, and make good what a person would; False where the run was over before."""


@dataclass(frozen=True)
class OfService(Fault):
    """A fault of one service."""

    service: str
    moment: Moment = "chunks"

    @property
    def felt_by(self) -> str:
        return "analysis" if self.service == "visualisation" else self.service.replace("_", "-")

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.service}" + ("" if self.moment == "chunks" else f" ({self.moment})")
