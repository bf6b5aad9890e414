"""The base classes of the faults."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from tests.chaos.environment import Environment, FollowedRun

#: The phases of a run: chunks are read and added up, the result is fitted, the plots are drawn.
Phase = Literal["chunks", "fit", "drawing"]


class Fault(ABC):
    """A fault that can be injected into a run.

    ``kind`` is its name in the table; ``phase`` the phase of the run in which
    it is injected; ``affects`` the service, as progress messages name it, whose
    next progress shows that the pipeline has recovered.
    """

    kind: str
    phase: Phase = "chunks"
    affects: str = "analysis"

    @property
    def name(self) -> str:
        return self.kind + ("" if self.phase == "chunks" else f" ({self.phase})")

    @abstractmethod
    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        """Inject the fault, and restart what it ended; False where its phase was over before."""


@dataclass(frozen=True)
class ServiceFault(Fault):
    """A fault of one service."""

    service: str
    phase: Phase = "chunks"

    @property
    def affects(self) -> str:
        return "analysis" if self.service == "visualisation" else self.service.replace("_", "-")

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.service}" + ("" if self.phase == "chunks" else f" ({self.phase})")
