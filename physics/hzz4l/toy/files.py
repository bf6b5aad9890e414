"""Write the files of the ``demo`` release, with the names and the layout of the real 2020 release.

The events are toys (see ``events`` and ``samples``). The weights add up to the
toy yields for any number of simulated events. The data are drawn from the same
distributions; their number follows from the luminosity of each file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot
from filelock import FileLock

from common.analyses import Analysis, Sample
from common.errors import SettingsError
from common.settings import RunSettings
from physics.hzz4l.constants import MEV_PER_GEV
from physics.hzz4l.release_2020e import cross_section_weight
from physics.hzz4l.toy.events import Indices, Leptons, concatenated, rows_of
from physics.hzz4l.toy.samples import toy_sample, with_fifth
from physics.hzz4l.toy.unread_branches import unread_columns, unread_types

# Chosen from thirty seeds: with it the few Z and tt̄ events of the default size and the
# number of data events are all close to their expectations.
DEMO_SEED: int = 20200143
# Part of the path, so that files of an older version in a cache are not used; increase it with every change.
DEMO_VERSION = 1

# Number of entries generated and written at a time, one basket of each branch; it limits the memory.
BLOCK_ENTRIES = 40_000
# Standard deviation of the scale factors of simulation about 1.
SCALE_FACTOR_SPREAD = 0.03
_SCALE_FACTORS = tuple(f"scaleFactor_{name}" for name in ("PILEUP", "ELE", "MUON", "LepTRIGGER"))

Columns = dict[str, ak.Array | npt.NDArray[np.generic]]

BASE_TYPES: Mapping[str, str] = {
    "runNumber": "int32",
    "eventNumber": "int32",
    "channelNumber": "int32",
    "mcWeight": "float32",
    **dict.fromkeys(_SCALE_FACTORS, "float32"),
    **dict.fromkeys(("lep_pt", "lep_eta", "lep_phi", "lep_E"), "var * float32"),
    "lep_charge": "var * int32",
    "lep_type": "var * uint32",
}


def shares(analysis: Analysis, events: int) -> dict[str, int]:
    """Return the number of entries of each simulated sample, in proportion to its entries in the release.

    They add up to ``events`` (largest remainder method) and are at least 1. Raises
    SettingsError if there are fewer events than simulated samples.
    """
    simulated = [sample for sample in analysis.samples if not sample.is_data]
    if events < len(simulated):
        raise SettingsError(
            f"demo events={events}: release {analysis.release} has {len(simulated)} simulated samples, "
            f"each of at least one event; write for example {RunSettings.demo_events}"
        )
    total = sum((sample.entries or 0) for sample in simulated)
    counts = np.array([events * (sample.entries or 0) // total for sample in simulated])
    remainders = np.array([events * (sample.entries or 0) % total for sample in simulated])
    counts[np.argsort(-remainders, kind="stable")[: events - counts.sum()]] += 1
    while (counts == 0).any():
        counts[counts.argmin()] += 1
        counts[counts.argmax()] -= 1
    return {sample.name: int(count) for sample, count in zip(simulated, counts, strict=True)}


def lumi_ifb(analysis: Analysis, sample: Sample) -> float:
    """Return the luminosity of a data sample in fb⁻¹, which is that of its period."""
    return next(period.lumi_ifb for period in analysis.periods if period.name == sample.period)


def mean_weight(sample: Sample, entries: int) -> float:
    """Return the mean mcWeight for which the weights of ``entries`` events add up to the toy yield of the sample."""
    toy = toy_sample(sample)
    return toy.events_per_ifb / (entries * cross_section_weight(sample, 1.0))


def simulated_block(
    rng: np.random.Generator, sample: Sample, first: int, n: int, entries: int
) -> tuple[Leptons, Indices, Columns]:
    """Draw n simulated events numbered from ``first``: leptons (n, 5), their number (n,), event columns (n,)."""
    toy = toy_sample(sample)
    leptons, count = with_fifth(rng, toy.draw(rng, n), toy.fifth_lepton)
    sign = np.where(rng.random(n) < toy.negative_weights, -1.0, 1.0)
    weight = sign * mean_weight(sample, entries) / (1 - 2 * toy.negative_weights)
    columns: Columns = {
        "runNumber": np.full(n, 284500),
        "eventNumber": np.arange(first, first + n),
        "channelNumber": np.full(n, sample.dsid),
        "mcWeight": weight,
    }
    for name in _SCALE_FACTORS:
        columns[name] = np.clip(1 + SCALE_FACTOR_SPREAD * rng.standard_normal(n), 0.5, 1.5)
    return leptons, count, columns


def data_block(rng: np.random.Generator, sample: Sample, analysis: Analysis) -> tuple[Leptons, Indices, Columns]:
    """Draw the events of a data sample: leptons (n, 5), their number (n,), event columns (n,).

    Each simulated sample contributes a Poisson number of events about its expectation
    at the luminosity of the data sample. The events are shuffled; their weights are 0, as in the real files.
    """
    toys = [toy_sample(simulated) for simulated in analysis.samples if not simulated.is_data]
    numbers = [int(rng.poisson(toy.events_per_ifb * lumi_ifb(analysis, sample))) for toy in toys]
    four = concatenated([toy.draw(rng, n) for toy, n in zip(toys, numbers, strict=True)])
    fifth = np.repeat([toy.fifth_lepton for toy in toys], numbers)
    n = sum(numbers)
    order = rng.permutation(n)
    leptons, count = with_fifth(rng, rows_of(four, order), fifth[order])
    run_number = np.sort(rng.integers(298_000, 303_000, n))
    columns: Columns = {
        "runNumber": run_number,
        "eventNumber": rng.integers(1, 2**31 - 1, n),
        "channelNumber": run_number,
        **{name: np.zeros(n) for name in ("mcWeight", *_SCALE_FACTORS)},
    }
    return leptons, count, columns


def lepton_columns(leptons: Leptons, count: Indices, per_gev: float) -> Columns:
    """Return the jagged lepton branches: the first ``count`` leptons of each row, energies in the file's unit."""
    real = np.arange(leptons.charge.shape[1]) < count[:, np.newaxis]
    flat = {
        "lep_pt": leptons.pt_gev * per_gev,
        "lep_eta": leptons.eta,
        "lep_phi": leptons.phi,
        "lep_E": leptons.pt_gev * np.cosh(leptons.eta) * per_gev,
        "lep_charge": leptons.charge,
        "lep_type": leptons.flavour,
    }
    return {
        name: ak.unflatten(values[real].astype(BASE_TYPES[name].removeprefix("var * ")), count)
        for name, values in flat.items()
    }


def blocks(sample: Sample, analysis: Analysis, events: int, *, all_branches: bool) -> Iterator[Columns]:
    """Generate the columns of a sample in blocks, each with its own stream of random numbers.

    A block depends only on the seed, the sample, ``events`` and its index. The branches that the analysis
    does not read have streams of their own, so that the other branches are the same without them.
    """
    index = analysis.sample_names.index(sample.name)
    entries = 0 if sample.is_data else shares(analysis, events)[sample.name]
    starts = (0,) if sample.is_data else range(0, entries, BLOCK_ENTRIES)
    for block, first in enumerate(starts):
        rng = np.random.default_rng([DEMO_SEED, index, block])
        if sample.is_data:
            leptons, count, columns = data_block(rng, sample, analysis)
        else:
            n = min(BLOCK_ENTRIES, entries - first)
            leptons, count, columns = simulated_block(rng, sample, first, n, entries)
        columns = {name: values.astype(BASE_TYPES[name]) for name, values in columns.items()}
        columns |= lepton_columns(leptons, count, MEV_PER_GEV)
        if all_branches:
            columns |= unread_columns(np.random.default_rng([DEMO_SEED, index, block, 1]), count)
        yield columns


def write_file(sample: Sample, analysis: Analysis, events: int, path: Path, *, all_branches: bool) -> None:
    """Write the file of a sample: one tree, ZLIB level 1, for each block one basket of each branch."""
    types = dict(BASE_TYPES) | (unread_types() if all_branches else {})
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        # The counter of lep_pt and the other lepton branches is lep_n, that of the jets jet_n, and so on. Counters
        # are int32: uproot writes no std::vector into a TTree, and no other type of counter.
        tree = file.mktree(analysis.tree, types, counter_name=lambda branch: f"{branch.split('_')[0]}_n")
        for columns in blocks(sample, analysis, events, all_branches=all_branches):
            tree.extend(columns)


def demo_file(sample: Sample, analysis: Analysis, events: int, directory: Path, *, all_branches: bool = False) -> Path:
    """Return the path of a sample's toy file, which is written if it does not exist.

    Parameters
    ----------
    sample, release
        The sample, and the release it belongs to.
    events
        Number of simulated events of all samples together; data do not depend on it.
    directory
        Directory of the cache; the file is written in ``directory/v<version>-<events>/`` or, with
        all branches, ``directory/v<version>-<events>-full/``, under its name in the release.
    all_branches
        Write all 81 branches of the real files, so that reading takes as long as there.

    Raises
    ------
    SettingsError
        There are fewer events than simulated samples, or the sample has no toy.
    OSError
        The directory cannot be written.

    Processes that need the same file wait for the first of them, which writes the
    file under another name and renames it, so that a file that exists is complete.
    """
    path = directory / f"v{DEMO_VERSION}-{events}{'-full' if all_branches else ''}" / sample.file
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            temporary = path.with_name(f"{path.name}.part")
            write_file(sample, analysis, events, temporary, all_branches=all_branches)
            os.replace(temporary, path)
    return path
