"""The data-processor: applies the selection to the events of a chunk, and calculates their observables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import awkward as ak
import numpy as np

from common.analyses import Analyses, Analysis
from common.columns import columns_of, records
from common.errors import MessageError
from common.messages import Events, Message, Progress, Selected
from common.service import Service
from common.settings import RunSettings, Settings
from physics import ANALYSES


class DataProcessor(Service):
    """Applies the processor's steps, and calculates observables and channels."""

    name: ClassVar[str] = "data-processor"
    analyses: ClassVar[Analyses] = ANALYSES

    def __init__(self, settings: Settings) -> None:
        """Use no settings: the messages and the analyses say everything."""

    def handle(self, message: Message) -> Sequence[Message]:
        """Select the events of a chunk."""
        if not isinstance(message, Events):
            raise MessageError(f"a data-processor has no use for a {message.kind} message")
        selected, cutflow = select(message.events, ANALYSES[message.release], message.settings)
        return [
            Selected(message.chunk, message.settings, {**message.cutflow, **cutflow}, selected),
            Progress("data-processor", message.chunk),
        ]


def select(events: ak.Array, analysis: Analysis, settings: RunSettings) -> tuple[ak.Array, dict[str, int]]:
    """Apply the data-processor's steps; returns the records of ``Selected`` and the cutflow."""
    columns = columns_of(events)
    found = analysis.objects(columns)
    passed = np.ones(len(events), dtype=np.bool_)
    cutflow: dict[str, int] = {}
    for step in analysis.processor_steps:
        passed &= step.passes(found, settings)
        cutflow[step.name] = int(passed.sum())
    columns = {name: np.compress(passed, values, axis=0) for name, values in columns.items()}
    found = analysis.objects(columns)
    with np.errstate(over="ignore"):  # a value out of range becomes infinite and is not in its histogram
        observables = {one.name: one.values(found).astype(one.dtype, copy=False) for one in analysis.observables}
    return records({**observables, "channel": analysis.channel(found), "weight": columns["weight"]}), cutflow
