"""Events and files of the 2020 release, made for tests or real, and their way through loader and processor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import pytest
import uproot

from common.analyses import Analysis, Sample
from common.messages import Chunk, Events, SamplePlan, Selected
from common.settings import RunSettings
from physics import ANALYSES
from physics.hzz4l.release_2020e import WEIGHTS
from workers.data_loader import reading
from workers.data_processor.service import select

ANALYSIS = ANALYSES["2020e-13tev"]
DATA = ANALYSIS.sample("data_A")
SIMULATION = ANALYSIS.sample("ttbar_lep")
NO_CUTS = RunSettings(pt_cuts_gev=(), lumi_ifb=10.0)

LEPTON_BRANCHES = {
    "lep_pt": np.float32,
    "lep_eta": np.float32,
    "lep_phi": np.float32,
    "lep_E": np.float32,
    "lep_charge": np.int32,
    "lep_type": np.uint32,
}


def real_data() -> Path:
    """Return the directory with the real files (ATLAS_TEST_DATA); skips the test if there is none."""
    given = os.environ.get("ATLAS_TEST_DATA")
    directory = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    if not (directory / "reference.json").is_file():
        pytest.skip(f"no real ATLAS data in {directory}; set ATLAS_TEST_DATA")
    return directory


def lepton(pt: float, charge: int = 1, flavour: int = 11, eta: float = 0.5, phi: float = 0.1) -> dict[str, Any]:
    """Return a massless lepton with the release's branches, in MeV."""
    with np.errstate(all="ignore"):
        energy = pt * np.cosh(eta)
    return {"lep_pt": pt, "lep_eta": eta, "lep_phi": phi, "lep_E": energy, "lep_charge": charge, "lep_type": flavour}


def four_leptons(*pts: float) -> list[dict[str, Any]]:
    """Return a 4e event of total charge 0 with these pT in MeV."""
    return [
        lepton(pt, charge, phi=phi) for pt, charge, phi in zip(pts, (1, -1, 1, -1), (0.0, 3.0, 1.5, -1.5), strict=True)
    ]


Event = Sequence[Mapping[str, Any]]


def write_file(
    path: Path,
    events: Sequence[Event],
    weights: Mapping[str, Any] | None = None,
    *,
    tree: str = "mini",
    basket: int | None = None,
    change: Mapping[str, Any] | None = None,
) -> Path:
    """Write events as the release's tree: jagged branches, and weights of 1 by default.

    ``basket`` is the number of events in a basket; ``change`` replaces branches by other
    arrays, or leaves out those that are None.
    """
    branches: dict[str, ak.Array] = {}
    for name, dtype in LEPTON_BRANCHES.items():
        counts = np.array([len(event) for event in events], dtype=np.int64)
        values = np.array([one[name] for event in events for one in event], dtype=np.float64)
        with np.errstate(over="ignore"):
            branches[name] = ak.unflatten(ak.Array(values.astype(dtype)), counts)
    for name in WEIGHTS:
        values = np.asarray((weights or {}).get(name, np.ones(len(events))))
        branches[name] = ak.Array(values.astype(np.float32))
    for name, values in (change or {}).items():
        branches[name] = ak.Array(values) if values is not None else None
    kept = {name: values for name, values in branches.items() if values is not None}
    with uproot.recreate(path) as file:
        # Each branch has its own counter, so that branches of an event may differ in length.
        file.mktree(tree, {name: values.type.content for name, values in kept.items()})
        for start in range(0, len(events), basket or max(1, len(events))):
            stop = start + (basket or len(events))
            file[tree].extend({name: values[start:stop] for name, values in kept.items()})
    return path


def read_all(
    path: Path, sample: Sample = SIMULATION, settings: RunSettings = NO_CUTS
) -> tuple[ak.Array, dict[str, int]]:
    """Return the events of a file that pass the data-loader's steps, and the cutflow."""
    entries = reading.chunk_bounds(path, ANALYSIS, sample, settings)[-1]
    return reading.select(reading.read(path, ANALYSIS, sample, 0, entries), ANALYSIS, sample, settings)


def random_events(rng: np.random.Generator, n: int, sample: Sample = SIMULATION) -> ak.Array:
    """Return n events as a data-loader sends them: four random leptons, many of charge 0 and of known channels."""
    pt = -np.sort(-rng.uniform(5e3, 1.2e5, (n, 4)), axis=1)
    eta = rng.uniform(-2.7, 2.7, (n, 4))
    columns: dict[str, npt.NDArray[Any]] = {
        "lep_pt": pt.astype(np.float32),
        "lep_eta": eta.astype(np.float32),
        "lep_phi": rng.uniform(-np.pi, np.pi, (n, 4)).astype(np.float32),
        "lep_energy": np.hypot(pt * np.cosh(eta), 105.66).astype(np.float32),
        "lep_charge": rng.choice([-1, 1], (n, 4)).astype(np.int8),
        "lep_type": rng.choice([11, 13], (n, 4)).astype(np.int8),
        "weight": np.ones(n, np.float32) if sample.is_data else rng.normal(0.3, 0.2, n).astype(np.float32),
    }
    return ak.Array(columns)


def random_selected(rng: np.random.Generator, n: int) -> ak.Array:
    """Return n events as a data-processor sends them, with masses inside and outside of the histograms."""
    return ak.Array(
        {
            "m4l": rng.uniform(60, 300, n),
            "m_z1": rng.uniform(30, 130, n).astype(np.float32),
            "m_z2": rng.uniform(0, 130, n).astype(np.float32),
            "lead_pt": rng.uniform(10, 200, n).astype(np.float32),
            "channel": rng.integers(0, len(ANALYSIS.channels), n).astype(np.int8),
            "weight": rng.normal(0.3, 0.2, n).astype(np.float32),
        }
    )


def selected(chunk: Chunk, events: ak.Array, settings: RunSettings) -> Selected:
    """Return a data-processor's message in which all events of the chunk are read and these are selected."""
    cutflow = dict.fromkeys(ANALYSIS.steps, len(events)) | {"read": chunk.stop - chunk.start}
    return Selected(chunk, settings, cutflow, events)


@dataclass(frozen=True)
class Processed:
    """The plan of a file and the messages of the data-processor for its chunks."""

    plan: SamplePlan
    messages: tuple[Selected, ...]


def process(run_id: str, path: Path, sample: Sample, settings: RunSettings, analysis: Analysis = ANALYSIS) -> Processed:
    """Apply the functions of loader and processor to a file, chunk by chunk, with encoded messages in between."""
    bounds = reading.chunk_bounds(path, analysis, sample, settings)
    settings = ANALYSES.resolve(settings)
    plan = SamplePlan(run_id, sample.name, bounds[-1], bounds, digest=settings.digest)
    messages = []
    for chunk in plan.chunks:
        arrays = reading.read(path, analysis, sample, chunk.start, chunk.stop)
        events, cutflow = reading.select(arrays, analysis, sample, settings)
        sent = Events.decode(Events(chunk, settings, cutflow, events).encode(), ANALYSES)
        chosen, further = select(sent.events, analysis, sent.settings)
        message = Selected(chunk, settings, {**cutflow, **further}, chosen)
        messages.append(Selected.decode(message.encode(), ANALYSES))
    return Processed(plan, tuple(messages))
