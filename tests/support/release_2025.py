"""Files of the release 2025e-13tev-beta with all its branches, made for tests from random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot

from common.analyses import Sample
from physics import ANALYSES

ANALYSIS = ANALYSES["2025e-13tev-beta"]
DATA = ANALYSIS.sample("data15_periodD")
SIMULATION = ANALYSIS.sample("llll")

_NAMES = {
    "double": """
        num_events sum_of_weights sum_of_weights_squared
    """,
    "std::string": """
        category
    """,
    "float": """
        TriggerMatch_DILEPTON ScaleFactor_MLTRIGGER ScaleFactor_PILEUP ScaleFactor_FTAG mcWeight xsec
        filteff kfac ScaleFactor_BTAG ScaleFactor_JVT ScaleFactor_ELE ScaleFactor_MUON
        ScaleFactor_LepTRIGGER ScaleFactor_MuTRIGGER ScaleFactor_ElTRIGGER ScaleFactor_PHOTON
        ScaleFactor_TAU ScaleFactor_TauTRIGGER ScaleFactor_DiTauTRIGGER truth_met truth_met_phi met met_phi
        met_mpx met_mpy
    """,
    "uint32_t": """
        channelNumber runNumber
    """,
    "uint64_t": """
        eventNumber
    """,
    "bool": """
        trigML trigP trigDT trigT trigE trigDM trigDE trigM trigMET
    """,
    "int32_t": """
        jet_n largeRJet_n lep_n photon_n tau_n truth_jet_n truth_elec_n truth_muon_n truth_tau_n
        truth_photon_n
    """,
    "RVec<float>": """
        jet_pt jet_eta jet_phi jet_e largeRJet_pt largeRJet_eta largeRJet_phi largeRJet_e largeRJet_m
        largeRJet_D2 jet_pt_jer1 jet_pt_jer2 lep_pt lep_eta lep_phi lep_e lep_ptvarcone30 lep_topoetcone20
        lep_z0 lep_d0 lep_d0sig photon_pt photon_eta photon_phi photon_e photon_ptcone20 photon_topoetcone40
        tau_pt tau_eta tau_phi tau_e tau_charge tau_RNNJetScore tau_RNNEleScore truth_jet_pt truth_jet_eta
        truth_jet_phi truth_jet_m truth_elec_pt truth_elec_eta truth_elec_phi truth_muon_pt truth_muon_eta
        truth_muon_phi truth_tau_pt truth_tau_eta truth_tau_phi truth_photon_pt truth_photon_eta
        truth_photon_phi
    """,
    "RVec<int32_t>": """
        jet_btag_quantile lep_type lep_charge tau_nTracks
    """,
    "RVec<bool>": """
        jet_jvt lep_isTightID lep_isMediumID lep_isLooseID lep_isTightIso lep_isLooseIso lep_isTrigMatched
        photon_isLooseID photon_isTightID photon_isLooseIso photon_isTightIso tau_isTight
    """,
}
#: The type of each of the release's branches, as uproot names it in the release's own files.
BRANCHES = {name: kind for kind, names in _NAMES.items() for name in names.split()}
_DTYPES = {"float": "float32", "double": "float64", "int32_t": "int32", "uint32_t": "uint32", "uint64_t": "uint64"}
_COLLECTIONS = tuple(name.removesuffix("_n") for name in BRANCHES if name.endswith("_n"))
Columns = Mapping[str, Any]


def dtype_of(branch: str) -> str:
    """Return the numpy type of the values of a branch."""
    kind = BRANCHES[branch].removeprefix("RVec<").removesuffix(">")
    return _DTYPES.get(kind, kind)


def is_jagged(branch: str) -> bool:
    """Return whether a branch has a list of values an event."""
    return BRANCHES[branch].startswith("RVec<")


def counter_of(branch: str) -> str:
    """Return the branch that has the number of values of a jagged branch."""
    return max((one for one in _COLLECTIONS if branch.startswith(f"{one}_")), key=len) + "_n"


def random_events(rng: np.random.Generator, n: int, sample: Sample) -> dict[str, Any]:
    """Draw n events of four leptons: random in all that the selection uses, unsorted, some with negative mcWeight.

    A tenth of the pT are those of the cuts. Some events pass each step, some do not.
    """
    shape = (n, 4)
    pt = np.where(rng.random(shape) < 0.1, rng.choice([10, 15, 20], shape), rng.uniform(7, 120, shape))
    eta = rng.uniform(-2.5, 2.5, shape)
    simulated = {
        "sum_of_weights": np.full(n, 8900161062.01826),
        "xsec": np.full(n, 1.2974),
        "kfac": np.full(n, 1.139756362),
        "filteff": np.full(n, 0.5437965),
        "mcWeight": rng.normal(500, 400, n),
        **{f"ScaleFactor_{name}": rng.normal(1, 0.1, n) for name in ("PILEUP", "ELE", "MUON", "LepTRIGGER")},
    }
    data = {"sum_of_weights": np.ones(n), **dict.fromkeys(("xsec", "kfac", "filteff"), np.zeros(n))}
    return {
        "trigE": rng.random(n) < 0.6,
        "trigM": rng.random(n) < 0.6,
        "lep_pt": pt,
        "lep_eta": eta,
        "lep_phi": rng.uniform(-np.pi, np.pi, shape),
        "lep_e": pt * np.cosh(eta),
        "lep_charge": rng.choice([-1, 1], shape),
        "lep_type": rng.choice([11, 13], shape),
        "lep_isTrigMatched": rng.random(shape) < 0.4,
        **{f"lep_is{name}": rng.random(shape) < 0.9 for name in ("LooseID", "MediumID", "LooseIso")},
        **(data if sample.is_data else simulated),
    }


def write_file(
    path: Path, columns: Columns, *, basket: int = 10_000, without: str = "", types: Mapping[str, str] | None = None
) -> Path:
    """Write a file of the release with all its branches; those without columns have random values.

    ``columns`` are arrays (events,), (events, k) or jagged ones. ``without`` is a branch to leave out, and
    ``types`` has the numpy types of branches that shall have another type than in the release.
    """
    rng = np.random.default_rng(2025)
    n = len(columns["lep_pt"])
    counts = {f"{one}_n": rng.poisson(1.5, n) for one in _COLLECTIONS}
    counts["lep_n"] = ak.to_numpy(ak.num(ak.Array(columns["lep_pt"])))
    arrays: dict[str, ak.Array | npt.NDArray[Any]] = {}
    for name in BRANCHES:
        if name in (*counts, without):
            continue
        dtype = (types or {}).get(name) or dtype_of(name)
        if name in columns:
            values = ak.Array(columns[name])
            if is_jagged(name):
                values = ak.from_regular(values)
            arrays[name] = ak.values_astype(values, dtype)
        elif name == "category":
            arrays[name] = ak.Array(["made"] * n)
        elif is_jagged(name):
            found = counts[counter_of(name)]
            arrays[name] = ak.unflatten(_random(rng, dtype, int(found.sum())), found)
        else:
            arrays[name] = _random(rng, dtype, n)
    kinds = {name: "string" if name == "category" else ak.Array(values).type.content for name, values in arrays.items()}
    with uproot.recreate(path) as file:
        tree = file.mktree(ANALYSIS.tree, kinds, counter_name=counter_of)
        for start in range(0, n, basket):
            tree.extend({name: values[start : start + basket] for name, values in arrays.items()})
    return path


def _random(rng: np.random.Generator, dtype: str, n: int) -> npt.NDArray[Any]:
    if dtype == "bool":
        return rng.random(n) < 0.5
    return rng.integers(0, 9, n).astype(dtype) if "int" in dtype else rng.uniform(0.5, 9, n).astype(dtype)
