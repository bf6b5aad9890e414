"""The releases of ATLAS Open Data that the pipeline knows: one entry each.

Everything that is particular to a release stands here: where its files lie,
the tree and branch names, units, samples, weights and selection steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from common.errors import SettingsError


@dataclass(frozen=True)
class Category:
    """A group of samples that is drawn as one histogram."""

    name: str
    label: str
    colour: str


@dataclass(frozen=True)
class Sample:
    """One file of a release.

    ``entries`` is the number of events that the release publishes for it. For
    simulation, ``cross_section_pb`` [pb], ``sum_of_weights`` and ``reduction``
    give the weight of an event; for data, ``lumi_ifb`` [fb⁻¹] says how much it holds.
    """

    name: str
    file: str
    category: str
    entries: int
    lumi_ifb: float | None = None
    dsid: int | None = None
    cross_section_pb: float = 0.0
    sum_of_weights: float = 0.0
    reduction: float = 1.0

    @property
    def is_data(self) -> bool:
        """True for collision data, whose events weigh 1."""
        return self.category == "data"

    def cross_section_weight(self, lumi_ifb: float) -> float:
        """Weight common to the sample's events: L[fb⁻¹]·1000·σ[pb] / (Σw·reduction)."""
        return lumi_ifb * 1000 * self.cross_section_pb / (self.sum_of_weights * self.reduction)


@dataclass(frozen=True)
class Branches:
    """What the release calls the quantities the analysis reads; ``weights`` are multiplied in this order."""

    pt: str
    eta: str
    phi: str
    energy: str
    charge: str
    lepton_type: str
    weights: tuple[str, ...]

    @property
    def leptons(self) -> Mapping[str, str]:
        """Our name of each per-lepton quantity, and the release's."""
        return MappingProxyType(
            {
                "lep_pt": self.pt,
                "lep_eta": self.eta,
                "lep_phi": self.phi,
                "lep_energy": self.energy,
                "lep_charge": self.charge,
                "lep_type": self.lepton_type,
            }
        )


@dataclass(frozen=True)
class Release:
    """One release: files, names, units, samples, weights and selection steps.

    ``per_gev`` is how many of the file's energy units make one GeV.
    ``loader_steps`` and ``processor_steps`` name the selection in its order;
    the services of these names know how to apply each.
    ``channels`` gives the sum of the four leading leptons' types per channel.
    """

    name: str
    title: str
    toy: bool
    sqrt_s_tev: int
    lumi_ifb: float
    tree: str
    per_gev: float
    branches: Branches
    channels: Mapping[str, int]
    loader_steps: tuple[str, ...]
    processor_steps: tuple[str, ...]
    base_urls: tuple[str, ...]
    categories: tuple[Category, ...]
    samples: tuple[Sample, ...]

    @property
    def sample_names(self) -> tuple[str, ...]:
        """Names of all samples, in the catalogue's order."""
        return tuple(sample.name for sample in self.samples)

    @property
    def steps(self) -> tuple[str, ...]:
        """Every step of the cutflow, from the events read to the events selected."""
        return ("read", *self.loader_steps, *self.processor_steps)

    def sample(self, name: str) -> Sample:
        """Return the sample of that name; raises SettingsError where there is none."""
        for sample in self.samples:
            if sample.name == name:
                return sample
        raise SettingsError(f"sample {name!r} is not in release {self.name}; it has {', '.join(self.sample_names)}")

    def in_order(self, names: Sequence[str]) -> tuple[Sample, ...]:
        """The named samples in the catalogue's order, each once; raises SettingsError for an unknown one."""
        wanted = {self.sample(name).name for name in names}
        return tuple(sample for sample in self.samples if sample.name in wanted)


# Cross-sections, sums of weights and reduction factors: the release's own
# infofile.py; entries and luminosities: record 15005 of opendata.cern.ch and the
# HZZAnalysis notebook of the ATLAS outreach group.
_EDUCATION_2020 = Release(
    name="2020e-13tev",
    title="ATLAS Open Data",
    toy=False,
    sqrt_s_tev=13,
    lumi_ifb=10.0,
    tree="mini",
    per_gev=1000.0,
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
    channels=MappingProxyType({"4e": 44, "2e2mu": 48, "4mu": 52}),
    loader_steps=("four_leptons", "pt_cuts"),
    processor_steps=("charge", "flavour"),
    base_urls=(
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
        Sample("data_A", "Data/data_A.4lep.root", "data", 39, lumi_ifb=0.5),
        Sample("data_B", "Data/data_B.4lep.root", "data", 156, lumi_ifb=1.9),
        Sample("data_C", "Data/data_C.4lep.root", "data", 237, lumi_ifb=2.9),
        Sample("data_D", "Data/data_D.4lep.root", "data", 475, lumi_ifb=4.7),
        Sample(
            "Zee",
            "MC/mc_361106.Zee.4lep.root",
            "z_ttbar",
            898,
            dsid=361106,
            cross_section_pb=1950.5295,
            sum_of_weights=150277594200,
        ),
        Sample(
            "Zmumu",
            "MC/mc_361107.Zmumu.4lep.root",
            "z_ttbar",
            684,
            dsid=361107,
            cross_section_pb=1950.6321,
            sum_of_weights=147334691090,
        ),
        Sample(
            "ttbar_lep",
            "MC/mc_410000.ttbar_lep.4lep.root",
            "z_ttbar",
            1031,
            dsid=410000,
            cross_section_pb=452.693559,
            sum_of_weights=49386600,
        ),
        Sample(
            "llll",
            "MC/mc_363490.llll.4lep.root",
            "zz",
            554279,
            dsid=363490,
            cross_section_pb=1.2578,
            sum_of_weights=7538705.8077,
        ),
        Sample(
            "ggH125_ZZ4lep",
            "MC/mc_345060.ggH125_ZZ4lep.4lep.root",
            "signal",
            164716,
            dsid=345060,
            cross_section_pb=0.0060239,
            sum_of_weights=27881776.6536,
        ),
        Sample(
            "VBFH125_ZZ4lep",
            "MC/mc_344235.VBFH125_ZZ4lep.4lep.root",
            "signal",
            191126,
            dsid=344235,
            cross_section_pb=0.0004633012,
            sum_of_weights=3680490.83243,
        ),
        Sample(
            "WH125_ZZ4lep",
            "MC/mc_341964.WH125_ZZ4lep.4lep.root",
            "signal",
            15379,
            dsid=341964,
            cross_section_pb=0.0003769,
            sum_of_weights=149400,
        ),
        Sample(
            "ZH125_ZZ4lep",
            "MC/mc_341947.ZH125_ZZ4lep.4lep.root",
            "signal",
            14485,
            dsid=341947,
            cross_section_pb=0.0000021424784,
            sum_of_weights=150000,
        ),
    ),
)

# The demo has the real release's files and numbers, made on this machine (workers/data_loader/demo.py).
_DEMO = replace(_EDUCATION_2020, name="demo", title="TOY demo", toy=True, base_urls=())

RELEASES: Mapping[str, Release] = MappingProxyType({r.name: r for r in (_EDUCATION_2020, _DEMO)})


def release(name: str) -> Release:
    """Return the catalogue's entry of that name; raises SettingsError where there is none."""
    try:
        return RELEASES[name]
    except KeyError:
        raise SettingsError(f"release {name!r} is not known; choose one of {', '.join(RELEASES)}") from None
