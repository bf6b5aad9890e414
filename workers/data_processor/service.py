"""The data-processor: applies the selection to the events of a chunk, and calculates their observables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import awkward as ak
import numpy as np

from common import evaluation
from common.analyses import Analysis
from common.cancellations import CancelledRuns
from common.columns import columns_of, records
from common.errors import AnalysisError, MessageError
from common.messages import ChunkFailed, Events, Message, Progress, Selected
from common.service import Service
from common.settings import RunSettings, Settings
from physics import ANALYSES


class DataProcessor(Service):
    """Applies the processor's steps, and calculates observables and channels."""

    name: ClassVar[str] = "data-processor"

    def __init__(self, settings: Settings) -> None:
        """Use only the directory of the analyses: the messages and the analyses say everything else."""
        self.analyses = ANALYSES.in_folder(settings.analyses, self.name)
        self._cancelled = CancelledRuns()

    def handle(self, message: Message) -> Sequence[Message]:
        """Select the events of a chunk, unless its run is cancelled; it fails if a function of the analysis does."""
        if self._cancelled.drops(message):
            return []
        if not isinstance(message, Events):
            raise MessageError(f"a data-processor has no use for a {message.kind} message")
        try:
            selected, cutflow = select(message.events, self.analyses.of(message.settings), message.settings)
        except AnalysisError as error:
            return [ChunkFailed(message.chunk, str(error), message.digest, self.spans("selected", message.spans))]
        cutflow = {**message.cutflow, **cutflow}
        software = {**message.software, self.name: self.software}
        return [
            Selected(
                message.chunk, message.settings, cutflow, selected, self.spans("selected", message.spans), software
            ),
            Progress("data-processor", message.chunk),
        ]


def select(events: ak.Array, analysis: Analysis, settings: RunSettings) -> tuple[ak.Array, dict[str, int]]:
    """Apply the data-processor's steps; returns the records of ``Selected`` and the cutflow.

    Raises AnalysisError where a function of the analysis fails or returns something else than it should.
    """
    columns = columns_of(events)
    found = evaluation.objects(analysis, columns)
    passed = np.ones(len(events), dtype=np.bool_)
    cutflow: dict[str, int] = {}
    for step in analysis.processor_steps:
        passed &= evaluation.passes(step, found, settings, columns)
        cutflow[step.name] = int(passed.sum())
    columns = {name: np.compress(passed, values, axis=0) for name, values in columns.items()}
    found = evaluation.objects(analysis, columns)
    observables = {one.name: evaluation.values(one, found, columns) for one in analysis.observables}
    channel, weight = evaluation.channels(analysis, found, columns), evaluation.weights(analysis, columns)
    return records({**observables, "channel": channel, "weight": weight}), cutflow
