"""The steps that all releases share, the channels and the observables of H→ZZ*→4ℓ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common import lazy_numpy as np
from common.analyses import Axis, Channel, Mask, Observable, Step
from common.settings import RunSettings
from physics.hzz4l.objects import FourLeptons

if TYPE_CHECKING:
    import numpy.typing as npt

PROCESS = r"H\to ZZ^{*}\to 4\ell"

#: The channels, and the sum of the four lepton types in each.
CHANNELS = (
    Channel("4e", r"H\to ZZ^{*}\to 4e", "4e"),
    Channel("2e2mu", r"H\to ZZ^{*}\to 2e2\mu", "2e2μ"),
    Channel("4mu", r"H\to ZZ^{*}\to 4\mu", "4μ"),
)
_TYPE_SUMS = (44, 48, 52)


def pt_cuts(leptons: FourLeptons, run: RunSettings) -> Mask:
    """Return which events pass the pT cuts: lepton i, in the order of the file, is strictly above cut i."""
    passed = np.ones(len(leptons.columns["lep_pt"]), dtype=np.bool_)
    for index, cut_gev in enumerate(run.cuts_gev):
        passed &= leptons.pt_gev(index) > cut_gev
    return passed


def is_neutral(leptons: FourLeptons, run: RunSettings) -> Mask:
    """Return which events have a total charge of 0."""
    return np.asarray(leptons.total_charge == 0)


def has_channel(leptons: FourLeptons, run: RunSettings) -> Mask:
    """Return which events are 4e, 2e2μ or 4μ, by the sum of the lepton types."""
    return channel(leptons) >= 0


def channel(leptons: FourLeptons) -> npt.NDArray[np.int8]:
    """Return the index of each event's channel, -1 for no channel."""
    types = leptons.type_sum
    found = np.full(len(types), -1, dtype=np.int8)
    for index, type_sum in enumerate(_TYPE_SUMS):
        found += (types == type_sum) * np.int8(index + 1)  # ten times as fast as a mask
    return found


PT_CUTS = Step("pt_cuts", pt_cuts)
CHARGE = Step("charge", is_neutral)
FLAVOUR = Step("flavour", has_channel)


def observables(m4l_axis: Axis) -> tuple[Observable, ...]:
    """Return the observables, with the bins of the four-lepton mass that a release uses."""
    return (
        Observable(
            "m4l",
            lambda leptons: leptons.mass,
            m4l_axis,
            label=r"$m_{4\ell}$",
            caption="Four-lepton mass",
            per_channel=True,
            dtype="float64",
        ),
        Observable(
            "m_z1",
            lambda leptons: leptons.z_masses[0],
            Axis(30, 40.0, 115.0),
            label="$m_{Z1}$",
            caption="Mass of the leading Z candidate",
            allow_nan=True,
        ),
        Observable(
            "m_z2",
            lambda leptons: leptons.z_masses[1],
            Axis(30, 0.0, 120.0),
            label="$m_{Z2}$",
            caption="Mass of the other Z candidate",
            allow_nan=True,
        ),
        Observable(
            "lead_pt",
            lambda leptons: leptons.pt_gev(0),
            Axis(30, 0.0, 150.0),
            label=r"Leading lepton $p_{\mathrm{T}}$",
            caption="Transverse momentum of the leading lepton",
            allow_nan=True,
        ),
    )
