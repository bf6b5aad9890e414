"""The release 2020e-13tev of ATLAS Open Data: samples, weights and selection.

Cross-sections, sums of weights and reduction factors: the release's own infofile.py. Entries, sizes
and checksums: record 15005 of opendata.cern.ch. Luminosities: the HZZAnalysis notebook of the ATLAS
outreach group.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from common import lazy_numpy as np
from common.analyses import Analysis, Axis, Branch, Category, Columns, Mask, Period, Sample, Step
from common.schema import Column
from common.settings import RunSettings
from physics.hzz4l import selection
from physics.hzz4l.constants import IPB_PER_IFB, MEV_PER_GEV
from physics.hzz4l.model import model
from physics.hzz4l.objects import FourLeptons, as_declared, check_weights, first_four

if TYPE_CHECKING:
    import awkward as ak
    import numpy.typing as npt

RECORD_URLS = (
    "https://opendata.cern.ch/eos/opendata/atlas/OutreachDatasets/2020-08-19/4lep/",
    "root://eospublic.cern.ch//eos/opendata/atlas/OutreachDatasets/2020-08-19/4lep/",
)
OTHER_URLS = (
    "https://opendata.cern.ch/eos/opendata/atlas/OutreachDatasets/2020-01-22/4lep/",
    "https://atlas-opendata.web.cern.ch/atlas-opendata/samples/2020/4lep/",
    "root://eospublic.cern.ch//eos/opendata/atlas/OutreachDatasets/2020-01-22/4lep/",
)

SAMPLES = (
    Sample(
        "data_A",
        "Data/data_A.4lep.root",
        "data",
        39,
        bytes=33765,
        adler32="b6a8df64",
        period="A",
    ),
    Sample(
        "data_B",
        "Data/data_B.4lep.root",
        "data",
        156,
        bytes=68738,
        adler32="f870fe84",
        period="B",
    ),
    Sample(
        "data_C",
        "Data/data_C.4lep.root",
        "data",
        237,
        bytes=92295,
        adler32="c7681404",
        period="C",
    ),
    Sample(
        "data_D",
        "Data/data_D.4lep.root",
        "data",
        400,
        bytes=139606,
        adler32="266a7775",
        period="D",
    ),
    Sample(
        "Zee",
        "MC/mc_361106.Zee.4lep.root",
        "z_ttbar",
        898,
        bytes=299577,
        adler32="d58a256c",
        dsid=361106,
        cross_section_pb=1950.5295,
        sum_of_weights=150277594200,
    ),
    Sample(
        "Zmumu",
        "MC/mc_361107.Zmumu.4lep.root",
        "z_ttbar",
        684,
        bytes=233914,
        adler32="8f471536",
        dsid=361107,
        cross_section_pb=1950.6321,
        sum_of_weights=147334691090,
    ),
    Sample(
        "ttbar_lep",
        "MC/mc_410000.ttbar_lep.4lep.root",
        "z_ttbar",
        1031,
        bytes=391352,
        adler32="8d8b3a96",
        dsid=410000,
        cross_section_pb=452.693559,
        sum_of_weights=49386600,
    ),
    Sample(
        "llll",
        "MC/mc_363490.llll.4lep.root",
        "zz",
        554279,
        bytes=179082866,
        adler32="6298e6cb",
        dsid=363490,
        cross_section_pb=1.2578,
        sum_of_weights=7538705.8077,
    ),
    Sample(
        "ggH125_ZZ4lep",
        "MC/mc_345060.ggH125_ZZ4lep.4lep.root",
        "signal",
        164716,
        bytes=50518236,
        adler32="1ea0e560",
        dsid=345060,
        cross_section_pb=0.0060239,
        sum_of_weights=27881776.6536,
    ),
    Sample(
        "VBFH125_ZZ4lep",
        "MC/mc_344235.VBFH125_ZZ4lep.4lep.root",
        "signal",
        191126,
        bytes=60503237,
        adler32="e551abab",
        dsid=344235,
        cross_section_pb=0.0004633012,
        sum_of_weights=3680490.83243,
    ),
    Sample(
        "WH125_ZZ4lep",
        "MC/mc_341964.WH125_ZZ4lep.4lep.root",
        "signal",
        15379,
        bytes=5528294,
        adler32="a923e2e8",
        dsid=341964,
        cross_section_pb=0.0003769,
        sum_of_weights=149400,
    ),
    Sample(
        "ZH125_ZZ4lep",
        "MC/mc_341947.ZH125_ZZ4lep.4lep.root",
        "signal",
        14485,
        bytes=5293850,
        adler32="18c94313",
        dsid=341947,
        cross_section_pb=0.0000021424784,
        sum_of_weights=150000,
    ),
)

#: Our name of each per-lepton quantity, and the branch.
LEPTONS = {
    "lep_pt": "lep_pt",
    "lep_eta": "lep_eta",
    "lep_phi": "lep_phi",
    "lep_energy": "lep_E",
    "lep_charge": "lep_charge",
    "lep_type": "lep_type",
}
#: The factors of a simulated event's weight, which are multiplied in this order.
WEIGHTS = (
    "mcWeight",
    "scaleFactor_PILEUP",
    "scaleFactor_ELE",
    "scaleFactor_MUON",
    "scaleFactor_LepTRIGGER",
)
_FLOAT = Branch(r"float(32|64)", "one real number", simulation_only=True)
_FLOATS = Branch(r"(var|\d+) \* float(32|64)", "a list of real numbers")
_INTEGERS = Branch(r"(var|\d+) \* (int|uint)\d+", "a list of integers")
_SIGNED_INTEGERS = Branch(r"(var|\d+) \* int\d+", "a list of signed integers")
BRANCHES = {
    **dict.fromkeys(("lep_pt", "lep_eta", "lep_phi", "lep_E"), _FLOATS),
    "lep_charge": _SIGNED_INTEGERS,
    "lep_type": _INTEGERS,
    **dict.fromkeys(WEIGHTS, _FLOAT),
}

#: The columns of an ``events`` message: the four leading leptons as the file holds them (float32, in MeV, so that no
#: bit is lost), and the weight of the event.
EVENTS = {
    "lep_pt": Column("float32", 4),
    "lep_eta": Column("float32", 4),
    "lep_phi": Column("float32", 4),
    "lep_energy": Column("float32", 4),
    "lep_charge": Column("int8", 4),
    "lep_type": Column("int8", 4),
    "weight": Column("float32"),
}

#: The beams lie at |η| ≈ 10. Far beyond that, sinh η makes masses overflow.
_MAX_ABS_ETA = 100.0


def columns(arrays: ak.Array, sample: Sample, lumi_ifb: float) -> Columns:
    """Return the four leading leptons and the weight of each event that has at least four leptons.

    The release sorts leptons by falling pT, so the leading ones are the first ones. Raises DataError for
    branches with different numbers of leptons, a charge or a type that no lepton has, and a weight that is not
    finite.
    """
    leptons, four = first_four(arrays, LEPTONS)
    leptons["weight"] = np.compress(four, weights(arrays, sample, lumi_ifb))
    return as_declared(leptons, EVENTS)


def cross_section_weight(sample: Sample, lumi_ifb: float) -> float:
    """Weight common to the sample's events: L[fb⁻¹]·1000·σ[pb] / (Σw·reduction)."""
    return lumi_ifb * IPB_PER_IFB * sample.cross_section_pb / (sample.sum_of_weights * sample.reduction)


def weights(arrays: ak.Array, sample: Sample, lumi_ifb: float) -> npt.NDArray[np.float32]:
    """Return the weight of each event, shape (events,): 1 for data.

    The weight is the cross-section weight times the factors, multiplied one after the other
    in float32. This is the arithmetic of the ATLAS outreach group's HZZAnalysis notebook, and
    reproduces its published yields digit for digit. Raises DataError for a factor that is not finite, and for
    a weight that is not or that is too large to be added up.
    """
    weight = np.ones(len(arrays), dtype=np.float32)
    if sample.is_data:
        return weight
    weight *= np.float32(cross_section_weight(sample, lumi_ifb))
    with np.errstate(over="ignore", invalid="ignore"):
        for name in WEIGHTS:
            weight *= arrays[name].to_numpy().astype(weight.dtype, copy=False)
    check_weights(weight, arrays, WEIGHTS)
    return weight


def well_measured(leptons: FourLeptons, run: RunSettings) -> Mask:
    """Return which events have leptons whose invariant mass can be computed.

    The kinematics must be finite, pT and energy positive, and |η| at most 100.
    """
    found = leptons.columns
    good = np.abs(found["lep_eta"]) <= _MAX_ABS_ETA
    good &= np.isfinite(found["lep_phi"])
    for name in ("lep_pt", "lep_energy"):
        good &= (found[name] > 0) & (found[name] < np.inf)
    # Three times as fast as all(axis=1) for four columns.
    return reduce(np.logical_and, good.T)


def objects(found: Columns) -> FourLeptons:
    """Return the four leptons of the events."""
    return FourLeptons(found, MEV_PER_GEV)


ANALYSIS = Analysis(
    name="hzz4l",
    process=selection.PROCESS,
    release="2020e-13tev",
    title="ATLAS Open Data",
    toy=False,
    sqrt_s_tev=13,
    tree="mini",
    branches=BRANCHES,
    record_urls=RECORD_URLS,
    other_urls=OTHER_URLS,
    lumi_ifb=10.0,
    pt_cuts_gev=(20.0, 15.0, 10.0),
    max_pt_cuts=4,
    periods=(Period("A", 0.5), Period("B", 1.9), Period("C", 2.9), Period("D", 4.7)),
    categories=(
        Category("data", "Data", "black", "data"),
        Category("z_ttbar", r"$Z,\,t\bar{t}$", "#6b59d3", "background"),
        Category("zz", r"$ZZ^{*}$", "#e8483a", "background"),
        Category("signal", r"$H\to ZZ^{*}$ ($m_H$ = 125 GeV)", "#3fc1e8", "signal"),
    ),
    samples=SAMPLES,
    columns=columns,
    events=EVENTS,
    objects=objects,
    loader_steps=(Step("four_leptons", well_measured), selection.PT_CUTS),
    processor_steps=(selection.CHARGE, selection.FLAVOUR),
    channels=selection.CHANNELS,
    channel=selection.channel,
    observables=selection.observables(Axis(34, 80.0, 250.0)),
    # Full Run 2: ATLAS-CONF-2019-021.
    model=model(luminosity=0.017),
    dsid_branch="channelNumber",
)
