"""The layout of the files of ``demo-2025``, which is that of the real release 2025e-13tev-beta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from common.analyses import Sample
from physics.hzz4l.constants import IPB_PER_IFB
from physics.hzz4l.release_2025e import WEIGHTS
from physics.hzz4l.toy.events import ELECTRON, MUON, TRIGGER_PT_GEV, Indices, Leptons
from physics.hzz4l.toy.layout import Columns, Layout, as_stored
from physics.hzz4l.toy.samples import SCALE_FACTOR_SPREAD, TOY_SAMPLES_2025, ToySample
from physics.hzz4l.toy.unread_branches import RELEASE_2025

_TYPES = {
    "runNumber": "uint32",
    "eventNumber": "uint64",
    "channelNumber": "uint32",
    "sum_of_weights": "float64",
    **dict.fromkeys(WEIGHTS, "float32"),
    **dict.fromkeys(("trigE", "trigM"), "bool"),
    **dict.fromkeys(("lep_pt", "lep_eta", "lep_phi", "lep_e"), "var * float32"),
    **dict.fromkeys(("lep_charge", "lep_type"), "var * int32"),
    **dict.fromkeys(
        ("lep_isTrigMatched", "lep_isLooseID", "lep_isMediumID", "lep_isLooseIso"),
        "var * bool",
    ),
}
_SCALE_FACTORS = tuple(name for name in WEIGHTS if name.startswith("ScaleFactor"))
_FILTER_EFFICIENCY, _K_FACTOR = 0.5, 1.25
# Leptons of an event are stored electrons first, and in each flavour by a pT that is smeared by this much.
_ORDER_SPREAD = 0.5
# Efficiencies of prompt leptons and of fakes.
_IDENTIFIED, _ISOLATED = (0.97, 0.6), (0.96, 0.55)
_FIRED = {ELECTRON: 0.9, MUON: 0.75}
# The fraction of events that fire a trigger without a lepton that is matched.
_UNMATCHED_TRIGGERS = 0.03


def simulated(rng: np.random.Generator, four: Leptons, sample: Sample, first: int, entries: int) -> Columns:
    """Return the branches of simulated events.

    The cross-section is that of the accepted events, and the sum of weights that of the absolute values of
    ``entries`` events, so that the weights of the selected events add up to the toy yield.
    """
    toy, n = TOY_SAMPLES_2025[sample.name], len(four.charge)
    detected = _detector(rng, four, np.full(n, toy.prompt))
    sign = np.where(rng.random(n) < toy.negative_weights, -1.0, 1.0)
    event = {
        "runNumber": np.full(n, 284500),
        "eventNumber": np.arange(first, first + n),
        "channelNumber": np.full(n, sample.dsid),
        "sum_of_weights": np.full(n, entries),
        "xsec": np.full(n, toy.events_per_ifb / IPB_PER_IFB / _FILTER_EFFICIENCY / _K_FACTOR),
        "kfac": np.full(n, _K_FACTOR),
        "filteff": np.full(n, _FILTER_EFFICIENCY),
        "mcWeight": sign * rng.gamma(25, 1 / 25, n),
    }
    for name in _SCALE_FACTORS:
        event[name] = np.clip(1 + SCALE_FACTOR_SPREAD * rng.standard_normal(n), 0.5, 1.5)
    return as_stored({**event, **detected}, _TYPES, np.ones(four.charge.shape, dtype=np.bool_))


def data(rng: np.random.Generator, four: Leptons, toys: Sequence[ToySample], toy_of: Indices) -> Columns:
    """Return the branches of events of data, where the cross-section and its factors are 0, as in the real files."""
    n = len(four.charge)
    detected = _detector(rng, four, np.array([toy.prompt for toy in toys])[toy_of])
    run_number = np.sort(rng.integers(276_000, 312_000, n))
    event = {
        "runNumber": run_number,
        "eventNumber": rng.integers(1, 2**40, n),
        "channelNumber": run_number,
        **{name: np.zeros(n) for name in ("xsec", "kfac", "filteff")},
        **{name: np.ones(n) for name in ("sum_of_weights", "mcWeight", *_SCALE_FACTORS)},
    }
    return as_stored({**event, **detected}, _TYPES, np.ones(four.charge.shape, dtype=np.bool_))


def _detector(rng: np.random.Generator, leptons: Leptons, prompt: Indices) -> dict[str, npt.NDArray[Any]]:
    """Return the leptons in the order of the file, with identification, isolation and triggers.

    The first ``prompt``, shape (n,), of the leptons of each event are prompt, the others are fakes.
    """
    shape = leptons.charge.shape
    is_prompt = np.arange(shape[1]) < prompt[:, np.newaxis]
    smeared = leptons.pt_gev * np.exp(_ORDER_SPREAD * rng.standard_normal(shape))
    order = np.lexsort((-smeared, leptons.flavour), axis=1)
    leptons = Leptons._make(np.take_along_axis(column, order, axis=1) for column in leptons)
    is_prompt = np.take_along_axis(is_prompt, order, axis=1)
    is_electron = leptons.flavour == ELECTRON
    identified, isolated = (rng.random(shape) < np.where(is_prompt, *one) for one in (_IDENTIFIED, _ISOLATED))
    fired = rng.random(shape) < np.where(is_electron, _FIRED[ELECTRON], _FIRED[MUON])
    fired &= leptons.pt_gev > TRIGGER_PT_GEV
    others = rng.random((2, shape[0])) < _UNMATCHED_TRIGGERS
    return {
        "lep_pt": leptons.pt_gev,
        "lep_eta": leptons.eta,
        "lep_phi": leptons.phi,
        "lep_e": leptons.pt_gev * np.cosh(leptons.eta),
        "lep_charge": leptons.charge,
        "lep_type": leptons.flavour,
        # The analysis asks for loose electrons and medium muons. A medium electron is also a loose one.
        "lep_isLooseID": identified | (~is_electron & (rng.random(shape) < 0.5)),
        "lep_isMediumID": identified & (~is_electron | (rng.random(shape) < 0.9)),
        "lep_isLooseIso": isolated,
        "lep_isTrigMatched": fired,
        "trigE": (fired & is_electron).any(axis=1) | others[0],
        "trigM": (fired & ~is_electron).any(axis=1) | others[1],
    }


# Chosen from seventeen streams: with it the few Z events of the default size and the number of data events, in all and
# around the Higgs boson, are close to their expectations.
_STREAM = (2040,)

LAYOUT = Layout(TOY_SAMPLES_2025, _TYPES, _STREAM, simulated, data, RELEASE_2025)
