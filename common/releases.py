"""The types that a release of open data is made of, and the lookup of releases by name.

The releases themselves are in ``physics``. This module holds no release.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from common.constants import IPB_PER_IFB
from common.errors import SettingsError
from common.schema import Schema
from common.settings import MAX_DEMO_EVENTS, RunSettings


@dataclass(frozen=True)
class Category:
    """A group of samples that is drawn as one histogram."""

    name: str
    label: str
    colour: str


@dataclass(frozen=True)
class Sample:
    """One file of a release.

    ``entries`` is the number of events that the release publishes for it; ``bytes`` and
    ``adler32`` (8 hexadecimal digits) are the size and the checksum of the record on the
    open data portal, None where there is no record. For simulation, ``cross_section_pb``
    [pb], ``sum_of_weights`` and ``reduction`` give the weight of an event; for data,
    ``lumi_ifb`` [fb⁻¹] says how much it holds.
    """

    name: str
    file: str
    category: str
    entries: int
    bytes: int | None = None
    adler32: str | None = None
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
        return lumi_ifb * IPB_PER_IFB * self.cross_section_pb / (self.sum_of_weights * self.reduction)


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
    the services of these names implement each step.
    ``channels`` gives the sum of the four leading leptons' types per channel.
    ``events`` and ``selected`` declare the columns of the messages of these
    kinds, which are checked when a message is read.
    ``record_urls`` are the directories that the record names: their files have the
    record's sizes and checksums. ``other_urls``, which are tried after them, may hold the same
    events in differently packed files.
    """

    name: str
    title: str
    toy: bool
    sqrt_s_tev: int
    tree: str
    per_gev: float
    branches: Branches
    channels: Mapping[str, int]
    loader_steps: tuple[str, ...]
    processor_steps: tuple[str, ...]
    events: Schema
    selected: Schema
    record_urls: tuple[str, ...]
    other_urls: tuple[str, ...]
    categories: tuple[Category, ...]
    samples: tuple[Sample, ...]

    @property
    def sample_names(self) -> tuple[str, ...]:
        """Names of all samples, in the release's order."""
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
        """The named samples in the release's order, each once; raises SettingsError for an unknown one."""
        wanted = {self.sample(name).name for name in names}
        return tuple(sample for sample in self.samples if sample.name in wanted)


class Releases(Mapping[str, Release]):
    """Releases by name: what run settings and messages are checked against."""

    def __init__(self, *releases: Release) -> None:
        self._releases = {release.name: release for release in releases}

    def __getitem__(self, name: str) -> Release:
        """Return the release of that name; raises SettingsError where there is none."""
        try:
            return self._releases[name]
        except KeyError:
            raise SettingsError(f"release {name!r} is not known; choose one of {', '.join(self._releases)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._releases)

    def __len__(self) -> int:
        return len(self._releases)

    def resolve(self, settings: RunSettings) -> RunSettings:
        """Return settings with the samples in the release's order, all of them where none is named.

        A toy release has no data location: its events are made on this machine.
        Raises SettingsError for a release, sample or number of events that there is not.
        """
        try:
            release = self[settings.release]
        except SettingsError as error:
            raise SettingsError(f"RELEASE={settings.release!r}: {error}") from None
        try:
            samples = release.in_order(settings.samples or release.sample_names)
        except SettingsError as error:
            raise SettingsError(f"SAMPLES={','.join(settings.samples)!r}: {error}") from None
        if not len(release.samples) <= settings.demo_events <= MAX_DEMO_EVENTS:
            raise SettingsError(
                f"DEMO_EVENTS={settings.demo_events}: choose from {len(release.samples)} to {MAX_DEMO_EVENTS} events"
            )
        return replace(
            settings,
            samples=tuple(sample.name for sample in samples),
            data=None if release.toy else settings.data,
        )
