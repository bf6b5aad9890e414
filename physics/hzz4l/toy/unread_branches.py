"""The branches of the real 2020 release that the analysis does not read, with plausible contents.

Benchmarks need them, because reading selected branches saves time only if there are others.
"""

from __future__ import annotations

from collections.abc import Mapping

import awkward as ak
import numpy as np
import numpy.typing as npt

# Branches with one value an event: their kind, and the mean of the values. For "bool" it is the probability
# of True; for "signed", a float32 with mean 0, the standard deviation.
_PER_EVENT: Mapping[str, tuple[str, float]] = {
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
_PER_OBJECT: Mapping[str, tuple[float, Mapping[str, tuple[str, float]]]] = {
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


def unread_types() -> dict[str, str]:
    """Return uproot's type of each of these branches; the jagged ones have the counter of their objects."""
    types = {name: _stored(kind) for name, (kind, _) in _PER_EVENT.items()}
    for objects, (_, branches) in _PER_OBJECT.items():
        types |= {f"{objects}_{name}": f"var * {_stored(kind)}" for name, (kind, _) in branches.items()}
    return types


def unread_columns(
    rng: np.random.Generator, lepton_count: npt.NDArray[np.int64]
) -> dict[str, ak.Array | npt.NDArray[np.generic]]:
    """Draw these branches of n events: arrays (n,) and jagged ones; ``lepton_count`` (n,) is the number of leptons."""
    n = len(lepton_count)
    columns: dict[str, ak.Array | npt.NDArray[np.generic]] = {
        name: _values(rng, kind, mean, n) for name, (kind, mean) in _PER_EVENT.items()
    }
    for objects, (mean_number, branches) in _PER_OBJECT.items():
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
    return (mean * drawn).astype(np.float32)
