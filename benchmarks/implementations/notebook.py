"""The analysis as in a notebook: one process, uproot's ``iterate``, awkward masks, vector and numpy's histogram.

It follows the HZZAnalysis notebooks of the ATLAS outreach group for the releases of 2020 and 2025 without their
unnecessary work. The pipeline is compared with it because it is as fast as such a notebook gets without being
optimised for speed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot
import vector

from benchmarks.implementations import Found, branches, files, main
from common.analyses import Sample
from common.settings import RunSettings
from physics import ANALYSES
from physics.hzz4l.constants import IPB_PER_IFB, MEV_PER_GEV
from physics.hzz4l.release_2020e import LEPTONS, WEIGHTS, cross_section_weight
from physics.hzz4l.release_2025e import WEIGHTS as WEIGHTS_2025


def analyse(run: RunSettings, cache: Path) -> Mapping[str, Found]:
    """Process the files one after the other, batch by batch."""
    analysis = ANALYSES[run.release]
    edges = analysis.observable("m4l").axis.edges
    recipe = RECIPES[analysis.tree]
    found = {}
    for name, (path, sample) in files(run, cache).items():
        selected, total, values = 0, 0.0, np.zeros(len(edges) - 1)
        with uproot.open(path) as file:
            for events in file[analysis.tree].iterate(branches(analysis, sample), library="ak", step_size="100 MB"):
                m4l, weight = recipe(events, sample, run)
                selected += len(m4l)
                total += float(np.sum(weight, dtype=np.float64))
                values += np.histogram(m4l, bins=edges, weights=weight)[0]
        found[name] = Found(selected, total, values.tolist())
    return found


def select(events: ak.Array, sample: Sample, run: RunSettings) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return m4l in GeV and the weight of the events that pass the cuts of 2020, both of shape (events selected,)."""
    name = LEPTONS
    events = events[ak.num(events[name["lep_pt"]]) >= 4]
    for index, cut_gev in enumerate(run.cuts_gev):
        events = events[events[name["lep_pt"]][:, index] > cut_gev * MEV_PER_GEV]
    events = events[ak.sum(events[name["lep_charge"]][:, :4], axis=1) == 0]
    flavours = ak.sum(events[name["lep_type"]][:, :4], axis=1)
    events = events[(flavours == 44) | (flavours == 48) | (flavours == 52)]
    p4 = vector.zip(
        {
            "pt": events[name["lep_pt"]],
            "eta": events[name["lep_eta"]],
            "phi": events[name["lep_phi"]],
            "E": events[name["lep_energy"]],
        }
    )
    m4l = ak.to_numpy((p4[:, 0] + p4[:, 1] + p4[:, 2] + p4[:, 3]).M) / MEV_PER_GEV
    weight = np.full(
        len(m4l), 1.0 if sample.is_data else cross_section_weight(sample, run.luminosity_ifb), dtype=np.float32
    )
    for factor in () if sample.is_data else WEIGHTS:
        weight = weight * ak.to_numpy(events[factor])
    return m4l, weight


def select_2025(events: ak.Array, sample: Sample, run: RunSettings) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return m4l in GeV and the weight of the events that pass the cuts of 2025, both of shape (events selected,)."""
    events = events[events.trigE | events.trigM]
    events = events[ak.sum(events.lep_isTrigMatched, axis=1) >= 1]
    for index, cut_gev in enumerate(run.cuts_gev):
        events = events[events.lep_pt[:, index] > cut_gev]
    muons = (events.lep_type == 13) & events.lep_isMediumID & events.lep_isLooseIso
    electrons = (events.lep_type == 11) & events.lep_isLooseID & events.lep_isLooseIso
    events = events[ak.sum(muons | electrons, axis=1) == 4]
    flavours = ak.sum(events.lep_type, axis=1)
    events = events[(flavours == 44) | (flavours == 48) | (flavours == 52)]
    events = events[ak.sum(events.lep_charge, axis=1) == 0]
    p4 = vector.zip({"pt": events.lep_pt, "eta": events.lep_eta, "phi": events.lep_phi, "E": events.lep_e})
    m4l = ak.to_numpy((p4[:, 0] + p4[:, 1] + p4[:, 2] + p4[:, 3]).M)
    if sample.is_data:
        return m4l, np.ones(len(m4l))
    weight = run.luminosity_ifb * IPB_PER_IFB / ak.to_numpy(events.sum_of_weights)
    for factor in WEIGHTS_2025:
        weight = weight * abs(ak.to_numpy(events[factor]))
    return m4l, weight


#: The selection of a release by the name of its tree.
RECIPES = {"mini": select, "analysis": select_2025}


if __name__ == "__main__":
    sys.exit(main(analyse))
