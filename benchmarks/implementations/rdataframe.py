"""The analysis with ROOT: RDataFrame with implicit multi-threading, compiled just in time."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.implementations import Found, files, main
from common.analyses import Analysis, Sample
from common.settings import RunSettings
from physics import ANALYSES
from physics.hzz4l.constants import IPB_PER_IFB, MEV_PER_GEV
from physics.hzz4l.release_2020e import LEPTONS, WEIGHTS, cross_section_weight
from physics.hzz4l.release_2025e import WEIGHTS as WEIGHTS_2025

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ROOT's packages on PyPI warn that they are an alpha version
    import ROOT

_MASS = """
#include <Math/Vector4D.h>
double mass_of_four(const ROOT::RVecF &pt, const ROOT::RVecF &eta, const ROOT::RVecF &phi, const ROOT::RVecF &e) {
    ROOT::Math::PtEtaPhiEVector sum;
    for (int i = 0; i < 4; ++i) sum += ROOT::Math::PtEtaPhiEVector(pt[i], eta[i], phi[i], e[i]);
    return sum.M();
}
"""


def analyse(run: RunSettings, cache: Path) -> Mapping[str, Found]:
    """Run the event loops of all files at the same time."""
    ROOT.EnableImplicitMT()
    ROOT.gInterpreter.Declare(_MASS)
    analysis = ANALYSES[run.release]
    booked = {name: _book(str(path), analysis, sample, run) for name, (path, sample) in files(run, cache).items()}
    ROOT.RDF.RunGraphs([result for results in booked.values() for result in results])
    return {name: _found(*results) for name, results in booked.items()}


def _book(path: str, analysis: Analysis, sample: Sample, run: RunSettings) -> tuple[Any, Any, Any]:
    select = {"mini": _select, "analysis": _select_2025}[analysis.tree]
    frame = select(ROOT.RDataFrame(analysis.tree, path), sample, run)
    edges = analysis.observable("m4l").axis.edges
    model = ROOT.RDF.TH1DModel("m4l", "", len(edges) - 1, edges[0], edges[-1])
    return frame.Count(), frame.Sum("weight"), frame.Histo1D(model, "m4l", "weight")


def _select(frame: Any, sample: Sample, run: RunSettings) -> Any:
    """Return the events that pass the cuts of 2020, with m4l in GeV and the weight."""
    lep = LEPTONS
    frame = frame.Filter(f"{lep['lep_pt']}.size() >= 4")
    for index, cut_gev in enumerate(run.cuts_gev):
        frame = frame.Filter(f"{lep['lep_pt']}[{index}] > {cut_gev * MEV_PER_GEV}")
    charge, kind = lep["lep_charge"], lep["lep_type"]
    frame = frame.Filter(f"{charge}[0] + {charge}[1] + {charge}[2] + {charge}[3] == 0")
    frame = frame.Define("flavours", f"{kind}[0] + {kind}[1] + {kind}[2] + {kind}[3]")
    frame = frame.Filter("flavours == 44 || flavours == 48 || flavours == 52")
    kinematics = ", ".join(lep[name] for name in ("lep_pt", "lep_eta", "lep_phi", "lep_energy"))
    frame = frame.Define("m4l", f"mass_of_four({kinematics}) / {MEV_PER_GEV}")
    constant = 1.0 if sample.is_data else cross_section_weight(sample, run.luminosity_ifb)
    factors = () if sample.is_data else WEIGHTS
    return frame.Define("weight", " * ".join([f"double({constant!r})", *factors]))


def _select_2025(frame: Any, sample: Sample, run: RunSettings) -> Any:
    """Return the events that pass the cuts of 2025, with m4l in GeV and the weight."""
    frame = frame.Filter("trigE || trigM").Filter("Any(lep_isTrigMatched)")
    for index, cut_gev in enumerate(run.cuts_gev):
        frame = frame.Filter(f"lep_pt[{index}] > {cut_gev}")
    electrons, muons = "lep_type == 11 && lep_isLooseID", "lep_type == 13 && lep_isMediumID"
    frame = frame.Filter(f"Sum((({electrons}) || ({muons})) && lep_isLooseIso) == 4")
    frame = frame.Define("flavours", "Sum(lep_type)").Filter("flavours == 44 || flavours == 48 || flavours == 52")
    frame = frame.Filter("Sum(lep_charge) == 0").Define("m4l", "mass_of_four(lep_pt, lep_eta, lep_phi, lep_e)")
    if sample.is_data:
        return frame.Define("weight", "1.0")
    factors = "".join(f" * std::abs({name})" for name in WEIGHTS_2025)
    return frame.Define("weight", f"{run.luminosity_ifb * IPB_PER_IFB} / sum_of_weights{factors}")


def _found(count: Any, total: Any, histogram: Any) -> Found:
    if not histogram.GetEntries():
        raise RuntimeError("the m4l histogram is empty")
    values = [histogram.GetBinContent(index + 1) for index in range(histogram.GetNbinsX())]
    return Found(int(count.GetValue()), float(total.GetValue()), values)


if __name__ == "__main__":
    sys.exit(main(analyse))
