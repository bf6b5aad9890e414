"""The types that an analysis is made of, and the lookup of analyses by name and release.

An ``Analysis`` says everything that is particular to one analysis of one release of
open data. The services ask it, and know nothing else about the physics. The analyses
themselves are in ``physics`` or in files of users; this module holds none.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from common import lazy_numpy as np
from common.errors import AnalysisError, SettingsError
from common.field_types import TypedFields
from common.names import NAME_IS, choices, is_name, plain_text
from common.schema import Column, DType, Schema
from common.settings import MAX_DEMO_EVENTS, MAX_LUMI_IFB, MIN_LUMI_IFB, RunSettings

if TYPE_CHECKING:
    import awkward as ak
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"
FloatArray: TypeAlias = "npt.NDArray[np.float64]"
Mask: TypeAlias = "npt.NDArray[np.bool_]"
Branches: TypeAlias = "ak.Array"
Columns = Mapping[str, Array]
Role = Literal["data", "signal", "background"]

#: The most numbers that the histograms of a result may have: as JSON they take up to 25 bytes each, of 8 MiB.
MAX_NUMBERS = 300_000


@dataclass(frozen=True)
class Category(TypedFields):
    """A group of samples that is drawn as one histogram; ``label`` is in mathtext."""

    name: str
    label: str
    colour: str
    role: Role

    @property
    def text(self) -> str:
        """The label in plain text."""
        return plain_text(self.label)


@dataclass(frozen=True)
class Sample(TypedFields):
    """One file of a release.

    ``entries`` is the number of events that the release publishes for it (None: unknown), ``bytes`` and
    ``adler32`` (hexadecimal) the size and checksum of its record. For simulation whose
    weights need them, ``cross_section_pb`` [pb], ``sum_of_weights`` and ``reduction``
    give the weight of an event. For data, ``period`` names the ``Period`` that it belongs to.
    """

    name: str
    file: str
    category: str
    entries: int | None
    period: str | None = None
    dsid: int | None = None
    cross_section_pb: float = 0.0
    sum_of_weights: float = 0.0
    reduction: float = 1.0
    bytes: int | None = None
    adler32: str | None = None

    @property
    def is_data(self) -> bool:
        """True for collision data, whose events weigh 1."""
        return self.period is not None


@dataclass(frozen=True)
class Period(TypedFields):
    """Data that have been taken together, and their integrated luminosity in fb⁻¹.

    A period consists of one or more samples. The luminosity of a part of them is not known.
    """

    name: str
    lumi_ifb: float


@dataclass(frozen=True)
class Branch(TypedFields):
    """A branch that is read: the types it may have, as a pattern of awkward's type names, and in words."""

    types: str
    what: str
    simulation_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.types)
        except re.error as error:
            raise AnalysisError(
                f"Branch: types is {self.types!r}, which is no regular expression ({error}); "
                "write a pattern of awkward's type names, for example 'u?int(32|64)'"
            ) from None


@dataclass(frozen=True)
class Step(TypedFields):
    """A step of the selection: a function from the objects of the events to a mask of shape (events,)."""

    name: str
    passes: Callable[[Any, RunSettings], Mask]


@dataclass(frozen=True)
class Axis(TypedFields):
    """Regular bins: ``low <= x < high``.

    The edges are those of ``numpy.linspace``, and a value on an edge belongs to the bin above it, so that ``high``
    itself is overflow. (``numpy.histogram`` has it in the last bin; ``hist.axis.Regular`` rounds differently: a value
    next to an edge may be in another bin.) Raises AnalysisError for an axis without bins.
    """

    bins: int
    low: float
    high: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.bins > 0 and self.low < self.high):
            raise AnalysisError(
                f"Axis({self.bins}, {self.low}, {self.high}) has no bins; "
                "give the number of bins, the lower and the higher edge, for example Axis(30, 0.0, 150.0)"
            )

    @cached_property
    def edges(self) -> FloatArray:
        """The edges of the bins, shape (bins + 1,)."""
        return np.linspace(self.low, self.high, self.bins + 1)

    @property
    def width(self) -> float:
        """The width of a bin."""
        return (self.high - self.low) / self.bins

    def has_edges(self, *values: float) -> bool:
        """Whether each of these values is an edge, up to rounding."""
        in_bins = [(value - self.low) / self.width for value in values]
        return all(0 <= round(one) <= self.bins and abs(one - round(one)) < 1e-6 for one in in_bins)

    def bins_between(self, low: float, high: float) -> Mask:
        """Which bins are between two edges, shape (bins,)."""
        centres = (self.edges[:-1] + self.edges[1:]) / 2
        return (low < centres) & (centres < high)

    def bin_of(self, values: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        """The bin of each value, counted from 1; 0 for underflow and NaN, bins + 1 for overflow.

        Gives the result of ``np.searchsorted`` in a third of the time: the bin is
        calculated, and corrected where rounding moved it across an edge.
        """
        values = values.astype(np.float64)  # in the type of the edges; a narrower one may not tell bins apart
        below, above = np.append(np.nan, self.edges), np.append(self.edges, np.nan)
        guess = (values - self.low) * (self.bins / (self.high - self.low))
        found: npt.NDArray[np.intp] = np.floor(np.fmin(np.fmax(guess, -1), self.bins)).astype(np.intp) + 1
        found -= values < below[found]
        found += values >= above[found]
        return found


@dataclass(frozen=True)
class Observable(TypedFields):
    """A quantity of the selected events, and its histogram.

    Parameters
    ----------
    name
        The name of its histogram, and of its column in a ``selected`` message.
    values
        A function from the objects of the events to their values, shape (events,).
    axis
        The bins of its histogram, in ``unit``.
    label
        The label of its axis in mathtext, without the unit.
    caption
        What the histogram shows, in plain text.
    unit
        The unit of the values; empty for a number.
    per_channel
        True where each channel has a histogram of its own, too, named ``NAME_CHANNEL``.
    dtype, allow_nan
        The type of the column, and whether a value may be missing (NaN, which is in no bin). Without
        ``allow_nan``, a value that is not finite is an error.
    """

    name: str
    values: Callable[[Any], Array]
    axis: Axis
    label: str
    caption: str
    unit: str = "GeV"
    per_channel: bool = False
    dtype: DType = "float32"
    allow_nan: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.allow_nan and not self.dtype.startswith("float"):
            raise AnalysisError(
                f"Observable {self.name!r}: dtype {self.dtype!r} has no NaN, so that allow_nan cannot be True; "
                "choose 'float32' or 'float64'"
            )

    @property
    def axis_label(self) -> str:
        """The label with the unit."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label

    @property
    def suffix(self) -> str:
        """What ends the names of numbers in the unit in result.json, for example ``_gev``; empty without a unit."""
        return f"_{self.unit.lower()}" if self.unit else ""


@dataclass(frozen=True)
class Channel(TypedFields):
    """A final state; ``label`` is in mathtext without dollar signs, ``text`` in plain text."""

    name: str
    label: str
    text: str


@dataclass(frozen=True)
class Normalisation(TypedFields):
    """A relative uncertainty of the yield of some categories, or of all simulation (None)."""

    name: str
    label: str
    relative: float
    categories: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ScaleVariation(TypedFields):
    """A relative uncertainty of the scale of the fitted observable: each value is multiplied by 1 ± ``relative``."""

    name: str
    label: str
    relative: float

    @property
    def factors(self) -> Mapping[str, float]:
        """The names of the two varied histograms, and the factor of the observable in each."""
        return {f"{self.name}_up": 1 + self.relative, f"{self.name}_down": 1 - self.relative}


@dataclass(frozen=True)
class Peak(TypedFields):
    """The measurement of the position of the signal's peak in the fitted observable, with finer bins.

    ``simulated`` is the position in the signal samples, ``scanned`` the range of the scan and ``window``
    the fitted range, all in the unit of the observable. The simulated peak is shifted to each scanned position by
    whole bins of ``axis``, so that the axis is wider than the window. Raises AnalysisError for a window that does not
    begin and end at edges of ``axis``, positions that are no whole number of bins from ``simulated``, and an axis that
    a shifted window leaves.
    """

    name: str
    symbol: str
    caption: str
    axis: Axis
    window: tuple[float, float]
    simulated: float
    scanned: tuple[float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        (low, high), (first, last) = self.window, self.scanned
        what = f"peak {self.name!r}: axis {self.axis}"
        if not (low < high and self.axis.has_edges(low, high)):
            raise AnalysisError(f"{what} has no edges at the ends of the window {self.window}; choose ends that it has")
        if not first < self.simulated < last:
            raise AnalysisError(
                f"peak {self.name!r}: the simulated position {self.simulated:g} is not in the scanned range "
                f"{self.scanned}; choose a range around it"
            )
        shifted = low - (last - self.simulated), high + (self.simulated - first)
        if not self.axis.has_edges(*shifted):
            raise AnalysisError(
                f"{what} has no edges at {shifted[0]:g} and {shifted[1]:g}, between which the peak is shifted from "
                f"{self.simulated:g} to the ends of the scanned range {self.scanned}; choose a wider axis or a "
                "narrower range, in whole bins"
            )

    @property
    def step(self) -> float:
        """The width of a bin of ``axis``."""
        return self.axis.width


@dataclass(frozen=True)
class Model(TypedFields):
    """What is fitted: the histogram of an observable, with the strength of the signal as parameter of interest.

    ``window`` is the range, in the unit of the observable, in which events are counted around the signal.
    With ``is_search`` the absence of the signal is tested, too (significance, CLs and upper limit), for which
    background is needed in every bin; without it only the strength is measured.
    """

    observable: str
    window: tuple[float, float]
    normalisations: tuple[Normalisation, ...]
    scale: ScaleVariation | None = None
    peak: Peak | None = None
    is_search: bool = True

    @property
    def fine(self) -> str:
        """The name of the finely binned histogram of the peak."""
        return f"{self.observable}_fine"


@dataclass(frozen=True)
class Analysis(TypedFields):
    """One analysis of one release.

    Parameters
    ----------
    name, process
        The name of the analysis, and the process that it looks for, in mathtext.
    release, title, toy, sqrt_s_tev
        The release: its name and title, whether its events are made on this machine, and √s in TeV.
    tree, branches
        The tree of the files and the branches that are read, by name.
    record_urls, other_urls
        Directories of the files: those of the record, whose files have the record's size and checksum,
        and other ones, which may hold the same events in other files.
    lumi_ifb, pt_cuts_gev
        The luminosity of all data in fb⁻¹ and the pT cuts in GeV where a run gives none.
    periods, categories, samples
        What the data consist of, and all samples in their order.
    columns
        A function from the branches of a chunk, its sample and the luminosity in fb⁻¹ to columns of shape
        (events,) or (events, k): at least those of ``events``. Events that lack the objects may be left out;
        they fail the first step. Raises DataError where a value cannot be what the branch should hold.
    events
        The columns of an ``events`` message, with a ``weight`` that is 1 for data.
    objects
        A function from columns to what the steps and observables are functions of.
    loader_steps, processor_steps
        The selection in its order: the steps of the data-loader and of the data-processor.
    channels, channel
        The final states, and a function from the objects to the index of each event's channel. An event that passes
        all steps must have one; the index of any other event has no effect.
    observables, model
        The histograms, and what is fitted.
    make_file
        For a toy: the function that writes the file of a sample, from the analysis, the sample, the number of
        simulated events and the directory to the file's path. With ``write=False`` it only returns the path.
    max_pt_cuts
        The most pT cuts that a run may have.
    dsid_branch
        The branch that has the DSID of a simulated event; None if there is none. A file without it is not checked.
    """

    name: str
    process: str
    release: str
    title: str
    toy: bool
    sqrt_s_tev: float
    tree: str
    branches: Mapping[str, Branch]
    record_urls: tuple[str, ...]
    other_urls: tuple[str, ...]
    lumi_ifb: float
    pt_cuts_gev: tuple[float, ...]
    max_pt_cuts: int
    periods: tuple[Period, ...]
    categories: tuple[Category, ...]
    samples: tuple[Sample, ...]
    columns: Callable[[Branches, Sample, float], Columns]
    events: Schema
    objects: Callable[[Columns], Any]
    loader_steps: tuple[Step, ...]
    processor_steps: tuple[Step, ...]
    channels: tuple[Channel, ...]
    channel: Callable[[Any], Array]
    observables: tuple[Observable, ...]
    model: Model
    make_file: Callable[..., Path] | None = None
    dsid_branch: str | None = None

    def __post_init__(self) -> None:
        """Raise AnalysisError for parts that do not fit together, such as a name that occurs twice."""
        super().__post_init__()
        categories = [one.name for one in self.categories]
        observables = [one.name for one in self.observables]
        self._check_names("sample", self.sample_names)
        self._check_names("category", categories)
        self._check_names("period", [one.name for one in self.periods])
        self._check_names("step", self.steps)
        self._check_names("channel", (one.name for one in self.channels))
        self._check_names("observable", observables)
        scales = () if self.model.scale is None else tuple(self.model.scale.factors)
        fine = () if self.model.peak is None else (self.model.fine,)
        by_channel = [f"{one.name}_{of.name}" for one in self.observables if one.per_channel for of in self.channels]
        self._check_names("histogram", (*observables, *by_channel, *scales, *fine, "edges"))
        self._check_names("column of the selected events", (*observables, "channel", "weight"))
        self._check_names("uncertainty", (*(one.name for one in self.model.normalisations), "mu", "mc_statistics"))
        periods = [one.name for one in self.periods]
        for sample in self.samples:
            self._check_known(f"sample {sample.name!r}", "category", sample.category, categories)
            if sample.period is not None:
                self._check_known(f"sample {sample.name!r}", "period", sample.period, periods)
        for norm in self.model.normalisations:
            for name in norm.categories or ():
                self._check_known(f"uncertainty {norm.name!r}", "category", name, categories)
        self._check_known("the model", "observable", self.model.observable, observables)
        self._check_bins()
        self._check_windows()
        self._check_roles()
        self._check_numbers()
        for kind, parts in (("sample", self.samples), ("channel", self.channels), ("observable", self.observables)):
            if not parts:
                raise AnalysisError(f"{self._where}: it has no {kind}; give at least one")
        if "weight" not in self.events:
            raise AnalysisError(f"{self._where}: events has no column 'weight'; it must have the weight of an event")

    @property
    def _where(self) -> str:
        return f"release {self.release!r}"  # an own analysis has the name of another one until it is loaded

    def _check_names(self, kind: str, names: Iterable[str]) -> None:
        counts = Counter(names)
        for name, count in counts.items():
            if count > 1:
                raise AnalysisError(f"{self._where}: {kind} {name!r} occurs {count} times; give each another name")
            if not is_name(name):
                raise AnalysisError(f"{self._where}: {kind} {name!r} has a name that cannot be used; {NAME_IS}")

    def _check_roles(self) -> None:
        """Check that one category has the data, and only data."""
        data = self.with_role("data")
        if len(data) != 1:
            raise AnalysisError(
                f"{self._where}: {len(data)} categories have the role 'data' ({', '.join(data) or 'none'}); "
                "exactly one must have it"
            )
        for sample in self.samples:
            if sample.is_data != (sample.category in data):
                period = f"the period {sample.period!r}" if sample.is_data else "no period"
                raise AnalysisError(
                    f"{self._where}: sample {sample.name!r} has {period}, and its category {sample.category!r} "
                    f"the role {self.category(sample.category).role!r}; "
                    "collision data, and nothing else, have a period and the role 'data'"
                )

    def _check_numbers(self) -> None:
        """Check what run settings are filled in with."""
        lumis = {"lumi_ifb": self.lumi_ifb, **{f"period {one.name!r}: lumi_ifb": one.lumi_ifb for one in self.periods}}
        for what, lumi in lumis.items():
            if not MIN_LUMI_IFB <= lumi <= MAX_LUMI_IFB:
                raise AnalysisError(
                    f"{self._where}: {what} is {lumi:g}; "
                    f"a luminosity lies from {MIN_LUMI_IFB:g} to {MAX_LUMI_IFB:g} fb⁻¹"
                )
        for cut in self.pt_cuts_gev:
            if cut < 0:
                raise AnalysisError(f"{self._where}: pt_cuts_gev has {cut:g}, which is not a pT in GeV; give 0 or more")
        if self.toy and (self.make_file is None or "write" not in inspect.signature(self.make_file).parameters):
            raise AnalysisError(
                f"{self._where}: it is a toy; give a function make_file(analysis, sample, events, directory, *, write) "
                "that makes its files"
            )

    def _check_bins(self) -> None:
        """Check that a result fits into a message."""
        axes = [(name, one.axis) for name, one in self.histograms.items()]
        if self.model.scale is not None:
            axes += [(name, self.fitted.axis) for name in self.model.scale.factors]
        if self.model.peak is not None:
            axes.append((self.model.fine, self.model.peak.axis))
        numbers = (1 + 2 * len(self.categories)) * sum(axis.bins for _, axis in axes)
        if numbers > MAX_NUMBERS:
            name, axis = max(axes, key=lambda one: one[1].bins)
            raise AnalysisError(
                f"{self._where}: the edges, values and variances of all histograms are {numbers:,} numbers, and "
                f"{MAX_NUMBERS:,} fit into a result; choose fewer bins than the {axis.bins:,} of {name!r}"
            )

    def _check_windows(self) -> None:
        """Check that the bins of the fitted observable fill the model's windows, and that fine bins fill its bins."""
        axis, peak = self.fitted.axis, self.model.peak
        bins = f"{self._where}: the bins of {self.fitted.name!r}, {axis},"
        windows = {"the model's window": self.model.window}
        if peak is not None:
            windows[f"the window of peak {peak.name!r}"] = peak.window
        for what, (low, high) in windows.items():
            if not (low < high and axis.has_edges(low, high)):
                raise AnalysisError(
                    f"{bins} have no edges at the ends of {what}, {low:g} and {high:g}; "
                    "choose other bins, or a window whose ends are edges"
                )
        if peak is not None and not peak.axis.has_edges(peak.axis.low, peak.axis.low + axis.width):
            raise AnalysisError(
                f"{bins} are not whole numbers of bins of peak {peak.name!r}, {peak.axis}; choose other bins of either"
            )

    def _check_known(self, what: str, kind: str, name: str, known: Sequence[str]) -> None:
        if name not in known:
            raise AnalysisError(
                f"{self._where}: {what} has the {kind} {name!r}, which does not exist; {choices(name, known)}"
            )

    @property
    def sample_names(self) -> tuple[str, ...]:
        """Names of all samples, in the release's order."""
        return tuple(sample.name for sample in self.samples)

    @property
    def steps(self) -> tuple[str, ...]:
        """Every step of the cutflow, from the events read to the events selected."""
        return ("read", *(step.name for step in (*self.loader_steps, *self.processor_steps)))

    @cached_property
    def selected(self) -> Schema:
        """The columns of a ``selected`` message: the observables, the index of the channel, and the weight."""
        observables = {one.name: Column(one.dtype, allow_nan=one.allow_nan) for one in self.observables}
        weight = replace(self.events["weight"], allow_nan=False, allow_infinite=False)
        return {**observables, "channel": Column("int8", below=len(self.channels)), "weight": weight}

    @cached_property
    def histograms(self) -> Mapping[str, Observable]:
        """Every histogram and its observable: those of all events, then those of each channel."""
        everything = {one.name: one for one in self.observables}
        by_channel = {
            f"{one.name}_{channel.name}": one
            for one in self.observables if one.per_channel for channel in self.channels
        }  # fmt: skip
        return {**everything, **by_channel}

    def channel_of(self, histogram: str) -> Channel | None:
        """The channel whose events a histogram has; None for a histogram of all events."""
        observable = self.histograms[histogram].name
        return next((one for one in self.channels if histogram == f"{observable}_{one.name}"), None)

    def sample(self, name: str) -> Sample:
        """Return the sample of that name; raises SettingsError where there is none."""
        for sample in self.samples:
            if sample.name == name:
                return sample
        raise SettingsError(f"sample {name!r} is not in release {self.release}; {choices(name, self.sample_names)}")

    def in_order(self, names: Sequence[str]) -> tuple[Sample, ...]:
        """The named samples in the release's order, each once; raises SettingsError for an unknown one."""
        wanted = {self.sample(name).name for name in names}
        return tuple(sample for sample in self.samples if sample.name in wanted)

    def category(self, name: str) -> Category:
        """Return the category of that name."""
        return next(category for category in self.categories if category.name == name)

    def with_role(self, role: Role) -> tuple[str, ...]:
        """The names of the categories with that role, in order."""
        return tuple(category.name for category in self.categories if category.role == role)

    @property
    def fitted(self) -> Observable:
        """The observable that is fitted."""
        return self.observable(self.model.observable)

    def observable(self, name: str) -> Observable:
        """Return the observable of that name."""
        return next(one for one in self.observables if one.name == name)

    def periods_of(self, names: Sequence[str]) -> tuple[list[Period], list[Period]]:
        """The periods of which all samples are among the named ones, and those of which some are."""
        whole, part = [], []
        for period in self.periods:
            samples = [sample.name in names for sample in self.samples if sample.period == period.name]
            if all(samples):
                whole.append(period)
            elif any(samples):
                part.append(period)
        return whole, part

    def lumi_of(self, names: Sequence[str]) -> float:
        """The luminosity in fb⁻¹ of the periods that the named samples belong to; without data, the release's."""
        whole, part = self.periods_of(names)
        if (not whole and not part) or len(whole) == len(self.periods):
            return self.lumi_ifb
        return fsum(period.lumi_ifb for period in (*whole, *part))


class Analyses(Mapping[str, Analysis]):
    """The releases of one analysis: what run settings and messages are checked against.

    ``sha256`` is the checksum of its code; empty if that is not known. Subclasses find other analyses, too.
    """

    def __init__(self, *analyses: Analysis, sha256: str = "") -> None:
        self._analyses = {analysis.release: analysis for analysis in analyses}
        self.name = analyses[0].name if analyses else ""
        self.sha256 = sha256

    def __getitem__(self, release: str) -> Analysis:
        """Return the analysis of that release; raises SettingsError where there is none."""
        try:
            return self._analyses[release]
        except KeyError:
            raise SettingsError(f"release {release!r} is not known; {choices(release, self)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._analyses)

    def __len__(self) -> int:
        return len(self._analyses)

    def find(self, name: str, sha256: str) -> Analyses:
        """Return the releases of the analysis of that name and checksum; an empty checksum is that of any code.

        Raises SettingsError where there is no such analysis, or its code is another one.
        """
        if self and name != self.name:
            raise SettingsError(f"ANALYSIS={name!r}: there is no such analysis; choose {self.name}")
        if sha256 and self.sha256 and sha256 != self.sha256:
            raise SettingsError(
                f"ANALYSIS={name!r}: the code here has the SHA-256 {self.sha256}, that of the run {sha256}; "
                "use the same version of the project everywhere"
            )
        return self

    def of(self, settings: RunSettings) -> Analysis:
        """Return the analysis of a run; raises SettingsError where there is none."""
        return self.find(settings.analysis, settings.analysis_sha256)[settings.release]

    def of_result(self, result: Mapping[str, Any]) -> Analysis:
        """Return the analysis of a result document; raises SettingsError where there is none.

        A document of the shipped analysis may come from an older version of it.
        """
        name = str(result.get("analysis", self.name))
        sha256 = "" if name == self.name else str(result.get("provenance", {}).get("analysis_sha256", ""))
        return self.find(name, sha256)[result["release"]]

    def resolve(self, settings: RunSettings) -> RunSettings:
        """Return settings in which everything is filled in that the release knows.

        The samples are in the release's order, all of them where none is named; the luminosity is that of
        the data periods in the run, and the pT cuts are the release's, where none are given. A toy release
        has no data location: its events are made on this machine. Raises SettingsError for a release, sample,
        number of cuts or number of events that there is not.
        """
        analyses = self.find(settings.analysis, settings.analysis_sha256)
        try:
            analysis = analyses[settings.release]
        except SettingsError as error:
            raise SettingsError(f"RELEASE={settings.release!r}: {error}") from None
        try:
            samples = analysis.in_order(settings.samples or analysis.sample_names)
        except SettingsError as error:
            raise SettingsError(f"SAMPLES={','.join(settings.samples)!r}: {error}") from None
        if not len(analysis.samples) <= settings.demo_events <= MAX_DEMO_EVENTS:
            raise SettingsError(
                f"DEMO_EVENTS={settings.demo_events}: choose from {len(analysis.samples)} to {MAX_DEMO_EVENTS} events"
            )
        cuts = analysis.pt_cuts_gev if settings.pt_cuts_gev is None else settings.pt_cuts_gev
        if len(cuts) > analysis.max_pt_cuts:
            raise SettingsError(
                f"PT_CUTS={','.join(f'{cut:g}' for cut in cuts)!r}: {len(cuts)} cuts; "
                f"give at most {analysis.max_pt_cuts}, for example "
                f"PT_CUTS={','.join(f'{cut:g}' for cut in analysis.pt_cuts_gev)}"
            )
        names = tuple(sample.name for sample in samples)
        return replace(
            settings,
            analysis_sha256=analyses.sha256,
            samples=names,
            # As floats, because a request that was sent as JSON has floats, too, and must have the same digest.
            lumi_ifb=float(analysis.lumi_of(names) if settings.lumi_ifb is None else settings.lumi_ifb),
            pt_cuts_gev=tuple(map(float, cuts)),
            data=None if analysis.toy else settings.data,
        )
