"""The branches of the real releases that the analyses do not read, with plausible contents.

Benchmarks need them, because reading selected branches saves time only if there are others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import awkward as ak
import numpy as np
import numpy.typing as npt

#: The kind of a branch's values and their mean: for "bool" the probability of True; for "signed", a float32 with
#: mean 0, the standard deviation.
Kind = tuple[str, float]


@dataclass(frozen=True)
class UnreadBranches:
    """The branches that a release has besides those that are read.

    Parameters
    ----------
    per_event
        The branches with one value an event.
    per_object
        The branches with one value an object, for each object: its mean number in an event (not used for leptons),
        and its branches without their first part, ``OBJECT_``. The branch of the number of objects is ``OBJECT_n``.
    """

    per_event: Mapping[str, Kind]
    per_object: Mapping[str, tuple[float, Mapping[str, Kind]]]

    def types(self) -> dict[str, str]:
        """Return uproot's type of each of these branches; the jagged ones have the counter of their objects."""
        types = {name: _stored(kind) for name, (kind, _) in self.per_event.items()}
        for objects, (_, branches) in self.per_object.items():
            types |= {f"{objects}_{name}": f"var * {_stored(kind)}" for name, (kind, _) in branches.items()}
        return types

    def counter(self, branch: str) -> str:
        """Return the branch with the number of objects of a jagged branch, which may be one that is read."""
        objects = [name for name in self.per_object if branch.startswith(f"{name}_")]
        return f"{objects[0] if objects else branch.partition('_')[0]}_n"

    def columns(
        self, rng: np.random.Generator, lepton_count: npt.NDArray[np.int64]
    ) -> dict[str, ak.Array | npt.NDArray[np.generic]]:
        """Draw these branches of n events: arrays (n,) and jagged ones.

        ``lepton_count``, shape (n,), is the number of leptons.
        """
        n = len(lepton_count)
        columns: dict[str, ak.Array | npt.NDArray[np.generic]] = {
            name: _values(rng, kind, mean, n) for name, (kind, mean) in self.per_event.items()
        }
        for objects, (mean_number, branches) in self.per_object.items():
            count = lepton_count if objects == "lep" else rng.poisson(mean_number, n)
            for name, (kind, mean) in branches.items():
                columns[f"{objects}_{name}"] = ak.unflatten(_values(rng, kind, mean, int(count.sum())), count)
        return columns


def _stored(kind: str) -> str:
    return "float32" if kind == "signed" else kind


def _values(rng: np.random.Generator, kind: str, mean: float, n: int) -> npt.NDArray[np.generic]:
    """Draw n values of a kind; floats have full precision, so that they compress like measured ones."""
    if kind == "bool":
        return rng.random(n) < mean
    if kind == "int32":
        return rng.poisson(mean, n).astype(np.int32)
    drawn = rng.standard_normal(n) if kind == "signed" else rng.gamma(4.0, 0.25, n)
    return (mean * drawn).astype(_stored(kind))


# Branches with one value an event.
_PER_EVENT_2020: Mapping[str, Kind] = {
    "scaleFactor_PHOTON": ("float32", 1.0),
    "scaleFactor_TAU": ("float32", 1.0),
    "scaleFactor_BTAG": ("float32", 1.0),
    "scaleFactor_PhotonTRIGGER": ("float32", 1.0),
    "trigE": ("bool", 0.7),
    "trigM": ("bool", 0.4),
    "trigP": ("bool", 0.0),
    "met_et": ("float32", 40e3),
    "met_phi": ("signed", 1.0),
    "met_et_syst": ("float32", 40e3),
    "ditau_m": ("float32", 0.0),
    "XSection": ("float32", 1.0),
    "SumWeights": ("float32", 1.0),
}

_FOUR_MOMENTUM = {"pt": ("float32", 40e3), "eta": ("signed", 1.0), "phi": ("signed", 1.0), "E": ("float32", 70e3)}
_MATCHED = {"truthMatched": ("bool", 0.95), "trigMatched": ("bool", 0.4)}
_ISOLATION = {"isTightID": ("bool", 0.8), "ptcone30": ("float32", 1.5e3), "etcone20": ("signed", 0.5e3)}

# Branches with one value an object: the mean number of objects in an event (not used for leptons), and the branches.
_PER_OBJECT_2020: Mapping[str, tuple[float, Mapping[str, Kind]]] = {
    "lep": (
        4.0,
        {
            **_MATCHED,
            **_ISOLATION,
            "z0": ("signed", 0.1),
            "trackd0pvunbiased": ("signed", 0.01),
            "tracksigd0pvunbiased": ("float32", 1.0),
            "pt_syst": ("float32", 40e3),
        },
    ),
    "jet": (
        1.1,
        {
            **_FOUR_MOMENTUM,
            "jvt": ("float32", 0.9),
            "trueflav": ("int32", 3.0),
            "truthMatched": ("bool", 0.9),
            "MV2c10": ("signed", 0.4),
            "pt_syst": ("float32", 40e3),
        },
    ),
    "photon": (
        0.05,
        {
            **_MATCHED,
            **_FOUR_MOMENTUM,
            **_ISOLATION,
            "convType": ("int32", 1.0),
            "pt_syst": ("float32", 40e3),
        },
    ),
    "tau": (
        0.05,
        {
            **_FOUR_MOMENTUM,
            **_MATCHED,
            "isTightID": ("bool", 0.5),
            "nTracks": ("int32", 2.0),
            "BDTid": ("float32", 0.6),
            "pt_syst": ("float32", 40e3),
            "charge": ("int32", 1.0),
        },
    ),
    "largeRjet": (
        0.05,
        {
            **_FOUR_MOMENTUM,
            "m": ("float32", 80e3),
            "truthMatched": ("float32", 1.0),
            "D2": ("float32", 1.5),
            "tau32": ("float32", 0.6),
            "pt_syst": ("float32", 300e3),
        },
    ),
}
RELEASE_2020 = UnreadBranches(_PER_EVENT_2020, _PER_OBJECT_2020)

# The means of data15_periodD; those of the true particles, which data do not have, are plausible. Without "category",
# because uproot does not write strings into a TTree.
_SCALE_FACTORS_2025 = (
    "MLTRIGGER", "FTAG", "BTAG", "JVT", "MuTRIGGER", "ElTRIGGER", "PHOTON", "TAU", "TauTRIGGER", "DiTauTRIGGER",
)  # fmt: skip
_TRIGGERS_2025 = {"ML": 0.01, "P": 0.03, "DT": 0.006, "T": 0.009, "DM": 0.27, "DE": 0.012, "MET": 0.09}
_PER_EVENT_2025: Mapping[str, Kind] = {
    "num_events": ("float64", 1.0),
    "sum_of_weights_squared": ("float64", 1.0),
    "TriggerMatch_DILEPTON": ("float32", 0.1),
    **{f"ScaleFactor_{name}": ("float32", 1.0) for name in _SCALE_FACTORS_2025},
    **{f"trig{name}": ("bool", share) for name, share in _TRIGGERS_2025.items()},
    **dict.fromkeys(("met", "truth_met"), ("float32", 40.0)),
    **dict.fromkeys(("met_phi", "truth_met_phi"), ("signed", 1.8)),
    **dict.fromkeys(("met_mpx", "met_mpy"), ("signed", 35.0)),
}
_DIRECTION_2025: Mapping[str, Kind] = {"pt": ("float32", 60.0), "eta": ("signed", 1.3), "phi": ("signed", 1.8)}
_MOMENTUM_2025: Mapping[str, Kind] = {**_DIRECTION_2025, "e": ("float32", 130.0)}
_PER_OBJECT_2025: Mapping[str, tuple[float, Mapping[str, Kind]]] = {
    "lep": (
        4.0,
        {
            "ptvarcone30": ("float32", 45.0),
            "topoetcone20": ("float32", 39.0),
            "z0": ("signed", 14.0),
            "d0": ("signed", 0.7),
            "d0sig": ("signed", 12.0),
            "isTightID": ("bool", 0.2),
            "isTightIso": ("bool", 0.02),
        },
    ),
    "jet": (
        1.7,
        {
            **_MOMENTUM_2025,
            "btag_quantile": ("int32", 1.3),
            "jvt": ("bool", 0.93),
            **dict.fromkeys(("pt_jer1", "pt_jer2"), ("float32", 70.0)),
        },
    ),
    "largeRJet": (0.04, {**_MOMENTUM_2025, "m": ("float32", 100.0), "D2": ("float32", 1.6)}),
    "photon": (
        0.02,
        {
            **_MOMENTUM_2025,
            "ptcone20": ("float32", 15.0),
            "topoetcone40": ("float32", 23.0),
            "isLooseID": ("bool", 0.97),
            **dict.fromkeys(("isTightID", "isLooseIso", "isTightIso"), ("bool", 0.2)),
        },
    ),
    "tau": (
        0.27,
        {
            **_MOMENTUM_2025,
            "charge": ("signed", 1.0),
            "nTracks": ("int32", 2.2),
            "isTight": ("bool", 0.01),
            "RNNJetScore": ("float32", 0.1),
            "RNNEleScore": ("float32", 1.0),
        },
    ),
    "truth_jet": (1.7, {**_DIRECTION_2025, "m": ("float32", 1.0)}),
    **dict.fromkeys(("truth_elec", "truth_muon"), (1.0, _DIRECTION_2025)),
    **dict.fromkeys(("truth_tau", "truth_photon"), (0.1, _DIRECTION_2025)),
}
RELEASE_2025 = UnreadBranches(_PER_EVENT_2025, _PER_OBJECT_2025)
