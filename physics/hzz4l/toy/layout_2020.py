"""The layout of the files of ``demo``, which is that of the real release 2020e-13tev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from common.analyses import Sample
from physics.hzz4l.constants import MEV_PER_GEV
from physics.hzz4l.release_2020e import cross_section_weight
from physics.hzz4l.toy.events import Indices, Leptons
from physics.hzz4l.toy.layout import Columns, Layout, as_stored
from physics.hzz4l.toy.samples import SCALE_FACTOR_SPREAD, TOY_SAMPLES, ToySample, with_fifth
from physics.hzz4l.toy.unread_branches import RELEASE_2020

_SCALE_FACTORS = tuple(f"scaleFactor_{name}" for name in ("PILEUP", "ELE", "MUON", "LepTRIGGER"))
_TYPES = {
    "runNumber": "int32",
    "eventNumber": "int32",
    "channelNumber": "int32",
    "mcWeight": "float32",
    **dict.fromkeys(_SCALE_FACTORS, "float32"),
    **dict.fromkeys(("lep_pt", "lep_eta", "lep_phi", "lep_E"), "var * float32"),
    "lep_charge": "var * int32",
    "lep_type": "var * uint32",
}


def mean_weight(sample: Sample, entries: int) -> float:
    """Return the mean mcWeight for which the weights of ``entries`` events add up to the toy yield of the sample."""
    return TOY_SAMPLES[sample.name].events_per_ifb / (entries * cross_section_weight(sample, 1.0))


def simulated(rng: np.random.Generator, four: Leptons, sample: Sample, first: int, entries: int) -> Columns:
    """Return the branches of simulated events. The mean weight gives the toy yield."""
    toy, n = TOY_SAMPLES[sample.name], len(four.charge)
    leptons, count = with_fifth(rng, four, toy.fifth_lepton)
    sign = np.where(rng.random(n) < toy.negative_weights, -1.0, 1.0)
    event = {
        "runNumber": np.full(n, 284500),
        "eventNumber": np.arange(first, first + n),
        "channelNumber": np.full(n, sample.dsid),
        "mcWeight": sign * mean_weight(sample, entries) / (1 - 2 * toy.negative_weights),
    }
    for name in _SCALE_FACTORS:
        event[name] = np.clip(1 + SCALE_FACTOR_SPREAD * rng.standard_normal(n), 0.5, 1.5)
    return _stored(event, leptons, count)


def data(rng: np.random.Generator, four: Leptons, toys: Sequence[ToySample], toy_of: Indices) -> Columns:
    """Return the branches of events of data; their weights are 0, as in the real files."""
    n = len(four.charge)
    leptons, count = with_fifth(rng, four, np.array([toy.fifth_lepton for toy in toys])[toy_of])
    run_number = np.sort(rng.integers(298_000, 303_000, n))
    event = {
        "runNumber": run_number,
        "eventNumber": rng.integers(1, 2**31 - 1, n),
        "channelNumber": run_number,
        **{name: np.zeros(n) for name in ("mcWeight", *_SCALE_FACTORS)},
    }
    return _stored(event, leptons, count)


def _stored(event: Mapping[str, npt.NDArray[Any]], leptons: Leptons, count: Indices) -> Columns:
    """Return the branches: the first ``count`` leptons of each row, energies in MeV."""
    columns = {
        **event,
        "lep_pt": leptons.pt_gev * MEV_PER_GEV,
        "lep_eta": leptons.eta,
        "lep_phi": leptons.phi,
        "lep_E": leptons.pt_gev * np.cosh(leptons.eta) * MEV_PER_GEV,
        "lep_charge": leptons.charge,
        "lep_type": leptons.flavour,
    }
    return as_stored(columns, _TYPES, np.arange(leptons.charge.shape[1]) < count[:, np.newaxis])


LAYOUT = Layout(TOY_SAMPLES, _TYPES, (), simulated, data, RELEASE_2020)
