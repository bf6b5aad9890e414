"""The release 2020e-13tev of ATLAS Open Data: files, samples, branches, weights and selection steps."""

from __future__ import annotations

from types import MappingProxyType

from common.constants import MEV_PER_GEV
from common.releases import Branches, Category, Release, Sample
from common.schema import Column

#: The columns of an ``events`` message: the four leading leptons as the file holds them (float32, the file's own
#: energy unit, so that no bit is lost), and the weight of the event, which is 1 for data.
EVENTS = MappingProxyType(
    {
        "lep_pt": Column("float32", 4),
        "lep_eta": Column("float32", 4),
        "lep_phi": Column("float32", 4),
        "lep_energy": Column("float32", 4),
        "lep_charge": Column("int8", 4),
        "lep_type": Column("int8", 4),
        "weight": Column("float32"),
    }
)

_CHANNELS = MappingProxyType({"4e": 44, "2e2mu": 48, "4mu": 52})

#: The columns of a ``selected`` message. ``channel`` counts the channels in their order. Masses and ``lead_pt``
#: (pT of the leading lepton) are in GeV; ``m_z1`` and ``m_z2`` are NaN where a pair of leptons is no Z candidate.
SELECTED = MappingProxyType(
    {
        "m4l": Column("float64", allow_nan=False),
        "channel": Column("int8", below=len(_CHANNELS)),
        "weight": Column("float32", allow_nan=False, allow_infinite=False),
        "m_z1": Column("float32"),
        "m_z2": Column("float32"),
        "lead_pt": Column("float32"),
    }
)

# Cross-sections, sums of weights and reduction factors: the release's own
# infofile.py; entries and luminosities: record 15005 of opendata.cern.ch and the
# HZZAnalysis notebook of the ATLAS outreach group; sizes and checksums: record 15005.
RELEASE = Release(
    name="2020e-13tev",
    title="ATLAS Open Data",
    toy=False,
    sqrt_s_tev=13,
    tree="mini",
    per_gev=MEV_PER_GEV,
    branches=Branches(
        pt="lep_pt",
        eta="lep_eta",
        phi="lep_phi",
        energy="lep_E",
        charge="lep_charge",
        lepton_type="lep_type",
        weights=(
            "mcWeight",
            "scaleFactor_PILEUP",
            "scaleFactor_ELE",
            "scaleFactor_MUON",
            "scaleFactor_LepTRIGGER",
        ),
    ),
    channels=_CHANNELS,
    loader_steps=("four_leptons", "pt_cuts"),
    processor_steps=("charge", "flavour"),
    events=EVENTS,
    selected=SELECTED,
    record_urls=(
        "https://opendata.cern.ch/eos/opendata/atlas/OutreachDatasets/2020-08-19/4lep/",
        "root://eospublic.cern.ch//eos/opendata/atlas/OutreachDatasets/2020-08-19/4lep/",
    ),
    other_urls=(
        "https://opendata.cern.ch/eos/opendata/atlas/OutreachDatasets/2020-01-22/4lep/",
        "https://atlas-opendata.web.cern.ch/atlas-opendata/samples/2020/4lep/",
        "root://eospublic.cern.ch//eos/opendata/atlas/OutreachDatasets/2020-01-22/4lep/",
    ),
    categories=(
        Category("data", "Data", "black"),
        Category("z_ttbar", r"$Z,\,t\bar{t}$", "#6b59d3"),
        Category("zz", r"$ZZ^{*}$", "#e8483a"),
        Category("signal", r"$H\to ZZ^{*}$ ($m_H$ = 125 GeV)", "#3fc1e8"),
    ),
    samples=(
        Sample(
            "data_A",
            "Data/data_A.4lep.root",
            "data",
            39,
            bytes=33765,
            adler32="b6a8df64",
            lumi_ifb=0.5,
        ),
        Sample(
            "data_B",
            "Data/data_B.4lep.root",
            "data",
            156,
            bytes=68738,
            adler32="f870fe84",
            lumi_ifb=1.9,
        ),
        Sample(
            "data_C",
            "Data/data_C.4lep.root",
            "data",
            237,
            bytes=92295,
            adler32="c7681404",
            lumi_ifb=2.9,
        ),
        Sample(
            "data_D",
            "Data/data_D.4lep.root",
            "data",
            400,
            bytes=139606,
            adler32="266a7775",
            lumi_ifb=4.7,
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
    ),
)
