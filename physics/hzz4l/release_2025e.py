"""The release 2025e-13tev-beta of ATLAS Open Data, skim exactly4lep: samples, weights and selection.

Files, sizes, checksums and entries: records 93924 (data) and 93928 (simulation) of opendata.cern.ch.
Selection and weights: the HZZAnalysis notebook of the ATLAS outreach group for this release. The
files carry cross-sections, filter efficiencies, k-factors and sums of weights as branches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common import lazy_numpy as np
from common.analyses import Analysis, Axis, Branch, Category, Columns, Mask, Period, Sample, Step
from common.errors import DataError
from common.schema import Column
from common.settings import RunSettings
from physics.hzz4l import selection
from physics.hzz4l.constants import IPB_PER_IFB
from physics.hzz4l.model import model
from physics.hzz4l.objects import FOUR, FourLeptons, as_declared, check_finite, check_weights, first_four, lengths

if TYPE_CHECKING:
    import awkward as ak
    import numpy.typing as npt

ELECTRON, MUON = 11, 13

RECORD_URLS = (
    "https://opendata.cern.ch/eos/opendata/atlas/rucio/opendata/",
    "root://eospublic.cern.ch//eos/opendata/atlas/rucio/opendata/",
)
PERIODS = (Period("2015", 3.24), Period("2016", 33.4))


def _data(name: str, entries: int, *, size: int, adler32: str) -> Sample:
    file = f"ODEO_FEB2025_v0_exactly4lep_{name}.exactly4lep.root"
    return Sample(name, file, "data", entries, period=f"20{name[4:6]}", bytes=size, adler32=adler32)


def _simulation(name: str, category: str, of_file: str, entries: int | None, *, size: int, adler32: str) -> Sample:
    file = f"ODEO_FEB2025_v0_exactly4lep_mc_{of_file}.exactly4lep.root"
    dsid = int(of_file.partition(".")[0])
    return Sample(name, file, category, entries, dsid=dsid, bytes=size, adler32=adler32)


SAMPLES = (
    _data("data15_periodD", 3_424, size=2_219_662, adler32="35ffb644"),
    _data("data15_periodE", 25_092, size=12_275_933, adler32="11aff768"),
    _data("data15_periodF", 16_234, size=8_484_460, adler32="73d2fb5c"),
    _data("data15_periodG", 37_101, size=17_643_965, adler32="5d44fbe9"),
    _data("data15_periodH", 12_152, size=5_414_463, adler32="db4aab41"),
    _data("data15_periodJ", 67_630, size=32_441_129, adler32="c41e0bbb"),
    _data("data16_periodA", 29_275, size=15_023_271, adler32="97e978aa"),
    _data("data16_periodB", 72_544, size=29_991_093, adler32="6f875e38"),
    _data("data16_periodC", 91_124, size=38_856_748, adler32="7668a69a"),
    _data("data16_periodD", 174_618, size=74_725_823, adler32="d2c053e3"),
    _data("data16_periodE", 54_896, size=23_061_480, adler32="aaa7f39a"),
    _data("data16_periodF", 118_615, size=50_022_281, adler32="454d66ec"),
    _data("data16_periodG", 134_798, size=55_416_187, adler32="1c237c0f"),
    _data("data16_periodI", 205_285, size=84_692_319, adler32="6350ad14"),
    _data("data16_periodK", 84_130, size=34_518_175, adler32="91eb8edb"),
    _data("data16_periodL", 235_693, size=97_198_909, adler32="e8bb20ab"),
    _simulation(
        "ttbar",
        "z_ttbar",
        "410470.PhPy8EG_A14_ttbar_hdamp258p75_nonallhad",
        13_763,
        size=16_255_158,
        adler32="20d1c6da",
    ),
    _simulation(
        "ttW", "z_ttbar", "410155.aMcAtNloPythia8EvtGen_MEN30NLO_A14N23LO_ttW", 133, size=128_712, adler32="c5b3bc30"
    ),
    _simulation(
        "ttee",
        "z_ttbar",
        "410218.aMcAtNloPythia8EvtGen_MEN30NLO_A14N23LO_ttee",
        2_735,
        size=1_738_794,
        adler32="f39f16c6",
    ),
    _simulation(
        "ttmumu",
        "z_ttbar",
        "410219.aMcAtNloPythia8EvtGen_MEN30NLO_A14N23LO_ttmumu",
        4_400,
        size=2_790_490,
        adler32="526eda69",
    ),
    _simulation(
        "tttt", "z_ttbar", "412043.aMcAtNloPythia8EvtGen_A14NNPDF31_SM4topsNLO", 1_127, size=943_776, adler32="77567e79"
    ),
    _simulation(
        "WWZ", "z_ttbar", "364243.Sherpa_222_NNPDF30NNLO_WWZ_4l2v_EW6", 7_664, size=3_733_703, adler32="4e75c48c"
    ),
    _simulation("WWW", "z_ttbar", "364242.Sherpa_222_NNPDF30NNLO_WWW_3l3v_EW6", 470, size=309_516, adler32="0bd818b8"),
    _simulation("WZZ", "z_ttbar", "364246.Sherpa_222_NNPDF30NNLO_WZZ_3l3v_EW6", 220, size=147_437, adler32="5139e65a"),
    _simulation(
        "ZZZ", "z_ttbar", "364248.Sherpa_222_NNPDF30NNLO_ZZZ_4l2v_EW6", 2_006, size=926_028, adler32="0955d692"
    ),
    _simulation("Zee_b", "z_ttbar", "700320.Sh_2211_Zee_maxHTpTV2_BFilter", 9_901, size=6_833_147, adler32="1f833f2c"),
    _simulation(
        "Zee_c", "z_ttbar", "700321.Sh_2211_Zee_maxHTpTV2_CFilterBVeto", 25_201, size=19_683_661, adler32="8368baab"
    ),
    _simulation(
        "Zee_light", "z_ttbar", "700322.Sh_2211_Zee_maxHTpTV2_CVetoBVeto", 45_787, size=34_195_062, adler32="f3056800"
    ),
    _simulation(
        "Zmumu_b", "z_ttbar", "700323.Sh_2211_Zmumu_maxHTpTV2_BFilter", 9_602, size=6_521_212, adler32="eebd221b"
    ),
    _simulation(
        "Zmumu_c", "z_ttbar", "700324.Sh_2211_Zmumu_maxHTpTV2_CFilterBVeto", 25_329, size=19_546_630, adler32="2d3e872e"
    ),
    _simulation(
        "Zmumu_light",
        "z_ttbar",
        "700325.Sh_2211_Zmumu_maxHTpTV2_CVetoBVeto",
        47_476,
        size=35_789_917,
        adler32="4516abfe",
    ),
    _simulation("llll", "zz", "700600.Sh_2212_llll", 11_260, size=5_407_367, adler32="1a80cedf"),
    _simulation(
        "ggH125_ZZ4l",
        "signal",
        "345060.PowhegPythia8EvtGen_NNLOPS_nnlo_30_ggH125_ZZ4l",
        419_943,
        size=182_051_943,
        adler32="c675b786",
    ),
    _simulation(
        "VBFH125_ZZ4l",
        "signal",
        "346228.PowhegPy8EG_NNPDF30_AZNLOCTEQ6L1_VBFH125_ZZ4lep_notau",
        86_084,
        size=40_376_446,
        adler32="d15f96aa",
    ),
    _simulation(
        "ZH125",
        "signal",
        "346310.PowhegPythia8EvtGen_NNPDF30_AZNLO_ZH125J_Zincl_H_incl_MINLO",
        None,
        size=65_117,
        adler32="bc64bb1e",
    ),
    _simulation(
        "WpH125",
        "signal",
        "346311.PowhegPythia8EvtGen_NNPDF30_AZNLO_WpH125J_Wincl_H_incl_MINLO",
        4,
        size=29_402,
        adler32="1f9104fa",
    ),
    _simulation(
        "WmH125",
        "signal",
        "346312.PowhegPythia8EvtGen_NNPDF30_AZNLO_WmH125J_Wincl_H_incl_MINLO",
        4,
        size=29_245,
        adler32="1cd8b9f6",
    ),
    _simulation(
        "ttH125_ZZ4l_allhad",
        "signal",
        "346340.PowhegPy8EG_A14NNPDF23_NNPDF30ME_ttH125_ZZ4l_allhad",
        7_146,
        size=5_028_335,
        adler32="f5a68974",
    ),
    _simulation(
        "ttH125_ZZ4l_semilep",
        "signal",
        "346341.PowhegPy8EG_A14NNPDF23_NNPDF30ME_ttH125_ZZ4l_semilep",
        10_072,
        size=6_732_775,
        adler32="8e7fc86f",
    ),
    _simulation(
        "ttH125_ZZ4l_dilep",
        "signal",
        "346342.PowhegPy8EG_A14NNPDF23_NNPDF30ME_ttH125_ZZ4l_dilep",
        9_332,
        size=5_886_203,
        adler32="27d3b85a",
    ),
)

#: Our name of each per-lepton quantity, and the branch. The first six travel; the others are for the loader's steps.
LEPTONS = {
    "lep_pt": "lep_pt",
    "lep_eta": "lep_eta",
    "lep_phi": "lep_phi",
    "lep_energy": "lep_e",
    "lep_charge": "lep_charge",
    "lep_type": "lep_type",
    "is_trigger_matched": "lep_isTrigMatched",
    "is_loose": "lep_isLooseID",
    "is_medium": "lep_isMediumID",
    "is_isolated": "lep_isLooseIso",
}
#: The factors of a simulated event's weight, which are multiplied in this order, each without its sign.
WEIGHTS = (
    "filteff",
    "kfac",
    "xsec",
    "mcWeight",
    "ScaleFactor_PILEUP",
    "ScaleFactor_ELE",
    "ScaleFactor_MUON",
    "ScaleFactor_LepTRIGGER",
)
_FLAG = Branch(r"bool", "one truth value")
_FLOAT = Branch(r"float(32|64)", "one real number", simulation_only=True)
_FLOATS = Branch(r"(var|\d+) \* float(32|64)", "a list of real numbers")
_INTEGERS = Branch(r"(var|\d+) \* int\d+", "a list of signed integers")
_FLAGS = Branch(r"(var|\d+) \* bool", "a list of truth values")
BRANCHES = {
    **dict.fromkeys(("trigE", "trigM"), _FLAG),
    **dict.fromkeys(("lep_pt", "lep_eta", "lep_phi", "lep_e"), _FLOATS),
    **dict.fromkeys(("lep_charge", "lep_type"), _INTEGERS),
    **dict.fromkeys(("lep_isTrigMatched", "lep_isLooseID", "lep_isMediumID", "lep_isLooseIso"), _FLAGS),
    **dict.fromkeys(("sum_of_weights", *WEIGHTS), _FLOAT),
}

#: The columns of an ``events`` message: the four leptons as the file holds them (float32, in GeV), in its order,
#: and the weight of the event.
EVENTS = {
    "lep_pt": Column("float32", 4),
    "lep_eta": Column("float32", 4),
    "lep_phi": Column("float32", 4),
    "lep_energy": Column("float32", 4),
    "lep_charge": Column("int8", 4),
    "lep_type": Column("int8", 4),
    "weight": Column("float64"),
}


def columns(arrays: ak.Array, sample: Sample, lumi_ifb: float) -> Columns:
    """Return the four leptons, the trigger decision and the weight of each event.

    Raises DataError for an event that has not exactly four leptons, as all events of the
    skim have, for branches with different numbers of leptons, a charge or a type that no lepton has, and for
    kinematics or a weight that are not finite.
    """
    leptons, _ = first_four(arrays, LEPTONS)
    counts = lengths(arrays["lep_pt"])
    if (counts != FOUR).any():
        wrong = int(np.argmax(counts != FOUR))
        raise DataError(f"entry {wrong} of the chunk has {counts[wrong]} leptons; the skim exactly4lep has four")
    for name in ("lep_pt", "lep_eta", "lep_phi", "lep_energy"):
        check_finite(LEPTONS[name], leptons[name])
    leptons["is_triggered"] = arrays["trigE"].to_numpy() | arrays["trigM"].to_numpy()
    leptons["weight"] = weights(arrays, sample, lumi_ifb)
    return as_declared(leptons, EVENTS)


def weights(arrays: ak.Array, sample: Sample, lumi_ifb: float) -> npt.NDArray[np.float64]:
    """Return the weight of each event, shape (events,): 1 for data.

    The weight is L·1000 / Σw times the factors without their signs, one after the other in float64. This
    is the arithmetic of the HZZAnalysis notebook. Raises DataError for a sum of weights that is not positive and
    finite, for a factor that is not finite, and for a weight that is not or that is too large to be added up.
    """
    if sample.is_data:
        return np.ones(len(arrays))
    sum_of_weights = arrays["sum_of_weights"].to_numpy().astype(np.float64)
    valid = (sum_of_weights > 0) & (sum_of_weights < np.inf)
    if not valid.all():
        wrong = int(np.argmin(valid))
        raise DataError(
            f"sum_of_weights is {sum_of_weights[wrong]} in entry {wrong} of the chunk; "
            "it must be a positive, finite number"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        weight = lumi_ifb * IPB_PER_IFB / sum_of_weights
        for name in WEIGHTS:
            weight = weight * np.abs(arrays[name].to_numpy())
    check_weights(weight, arrays, WEIGHTS)
    return np.asarray(weight, dtype=np.float64)


def is_triggered(leptons: FourLeptons, run: RunSettings) -> Mask:
    """Return which events a single-electron or a single-muon trigger has accepted."""
    return np.asarray(leptons.columns["is_triggered"], dtype=np.bool_)


def is_trigger_matched(leptons: FourLeptons, run: RunSettings) -> Mask:
    """Return which events have a lepton that has fired the trigger."""
    return np.asarray(leptons.columns["is_trigger_matched"].any(axis=1))


def is_identified(leptons: FourLeptons, run: RunSettings) -> Mask:
    """Return which events have four isolated leptons: electrons of loose, muons of medium identification."""
    found = leptons.columns
    electrons = (found["lep_type"] == ELECTRON) & found["is_loose"]
    muons = (found["lep_type"] == MUON) & found["is_medium"]
    return np.asarray(((electrons | muons) & found["is_isolated"]).all(axis=1))


def objects(found: Columns) -> FourLeptons:
    """Return the four leptons of the events, whose energies are in GeV."""
    return FourLeptons(found, per_gev=1.0)


ANALYSIS = Analysis(
    name="hzz4l",
    process=selection.PROCESS,
    release="2025e-13tev-beta",
    title="ATLAS Open Data",
    toy=False,
    sqrt_s_tev=13,
    tree="analysis",
    branches=BRANCHES,
    record_urls=RECORD_URLS,
    other_urls=(),
    lumi_ifb=36.6,
    pt_cuts_gev=(20.0, 15.0, 10.0),
    max_pt_cuts=FOUR,
    periods=PERIODS,
    categories=(
        Category("data", "Data", "black", "data"),
        Category("z_ttbar", r"$Z,\,t\bar{t},\,t\bar{t}V,\,VVV$", "#6b59d3", "background"),
        Category("zz", r"$ZZ^{*}$", "#ff0000", "background"),
        Category("signal", r"$H\to ZZ^{*}$ ($m_H$ = 125 GeV)", "#00cdff", "signal"),
    ),
    samples=SAMPLES,
    columns=columns,
    events=EVENTS,
    objects=objects,
    loader_steps=(
        Step("trigger", is_triggered),
        Step("trigger_match", is_trigger_matched),
        selection.PT_CUTS,
        Step("identification", is_identified),
    ),
    processor_steps=(selection.FLAVOUR, selection.CHARGE),
    channels=selection.CHANNELS,
    channel=selection.channel,
    observables=selection.observables(Axis(68, 80.0, 250.0)),
    # 2015 and 2016 together: ATLAS-CONF-2019-021 (1.7 % for all of Run 2).
    model=model(luminosity=0.021),
)
