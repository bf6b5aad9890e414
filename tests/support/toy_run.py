"""A run with enough simulated events for a fit: Z at 91 GeV, Higgs boson at 125 GeV, ZZ from 180 GeV, some Z and tt̄."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from common.messages import Chunk, Message, RunPlan, SamplePlan, Selected
from common.settings import RunSettings
from physics import ANALYSES
from workers.analysis.histograms import fill
from workers.analysis.result import result_of
from workers.analysis.store import PartialSums, Store

ANALYSIS = ANALYSES["demo"]
SAMPLES = ("data_A", "Zee", "llll", "ggH125_ZZ4lep")
#: The numbers of expected and of simulated events.
YIELDS = {"Zee": (70.0, 400), "llll": (240.0, 20_000), "ggH125_ZZ4lep": (15.0, 8_000)}


def masses(rng: np.random.Generator, sample: str, n: int) -> npt.NDArray[np.float64]:
    """Draw n values of m4l in GeV."""
    if sample == "ggH125_ZZ4lep":
        return rng.normal(124.8, 2.2, n)
    if sample == "Zee":
        return rng.uniform(80, 250, n)
    peak, flat, pairs = rng.multinomial(n, (0.28, 0.24, 0.48))
    return np.concatenate([rng.normal(91, 3, peak), rng.uniform(80, 250, flat), 182 + rng.exponential(45, pairs)])


def events_of(rng: np.random.Generator, m4l: npt.NDArray[np.float64], weight: float) -> ak.Array:
    n = len(m4l)
    return ak.Array(
        {
            "m4l": m4l,
            "m_z1": np.full(n, 90, np.float32),
            "m_z2": np.full(n, 30, np.float32),
            "lead_pt": np.full(n, 50, np.float32),
            "channel": rng.integers(0, len(ANALYSIS.channels), n).astype(np.int8),
            "weight": np.full(n, weight, np.float32),
        }
    )


def drawn(sample: str, seed: int = 1) -> ak.Array:
    """Draw a sample's selected events: weighted simulation, or data from the sum of all simulation."""
    rng = np.random.default_rng([seed, *sample.encode()])
    if sample in YIELDS:
        expected, simulated = YIELDS[sample]
        return events_of(rng, masses(rng, sample, simulated), expected / simulated)
    m4l = [masses(rng, name, int(rng.poisson(expected))) for name, (expected, _) in YIELDS.items()]
    return events_of(rng, np.concatenate(m4l), 1.0)


def messages(run_id: str = "run", samples: tuple[str, ...] = SAMPLES, seed: int = 1) -> list[Message]:
    """Return all messages of a complete run with one chunk per sample."""
    settings = ANALYSES.resolve(RunSettings(release=ANALYSIS.release, samples=samples))
    found: list[Message] = [RunPlan(run_id, 1000.0, settings)]
    for sample in samples:
        events = drawn(sample, seed)
        cutflow = dict.fromkeys(ANALYSIS.steps, len(events))
        found.append(SamplePlan(run_id, sample, len(events), (0, len(events)), digest=settings.digest))
        found.append(Selected(Chunk(run_id, sample, 0, len(events)), settings, cutflow, events))
    return found


def document(samples: tuple[str, ...] = SAMPLES, seed: int = 1) -> dict[str, Any]:
    """Return the result document of the run, without the fit."""
    with closing(Store(None)) as store:
        for message in messages(samples=samples, seed=seed):
            if isinstance(message, RunPlan):
                store.begin(message)
            elif isinstance(message, SamplePlan):
                store.plan(message)
            elif isinstance(message, Selected):
                sample = ANALYSIS.sample(message.chunk.sample)
                weights = np.empty(0, np.float32) if sample.is_data else ak.to_numpy(message.events.weight)
                store.add(
                    message.chunk,
                    PartialSums(message.cutflow, fill(message.events, ANALYSIS, sample.category), weights),
                )
        run = store.run("run")
        assert run is not None
        return result_of(run, store, 1010.0, final=True)
