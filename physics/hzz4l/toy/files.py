"""Write the files of a toy release, with the names and the layout of those of the real one.

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
import uproot
from filelock import FileLock

from common.analyses import Analysis, Sample
from common.errors import SettingsError
from common.settings import RunSettings
from physics.hzz4l.toy import layout_2020, layout_2025
from physics.hzz4l.toy.events import concatenated, rows_of
from physics.hzz4l.toy.layout import Columns, Layout

# Chosen once, as a typical draw: with it and the default number of events, the signal strength of each toy release is
# within half a standard deviation of 1, and no bin of its mass further than 2.5 from its expectation.
DEMO_SEED: int = 20200193
# Part of the path, so that files of an older version in a cache are not used; increase it with every change.
DEMO_VERSION = 2

# Number of entries generated and written at a time, one basket of each branch; it limits the memory.
BLOCK_ENTRIES = 40_000
#: The layout of the files of each toy release.
LAYOUTS: Mapping[str, Layout] = {"demo": layout_2020.LAYOUT, "demo-2025": layout_2025.LAYOUT}


def shares(analysis: Analysis, events: int) -> dict[str, int]:
    """Return the number of entries of each simulated sample, in proportion to those of the release or of its toy.

    They add up to ``events`` (largest remainder method) and are at least 1. Raises
    SettingsError if there are fewer events than simulated samples.
    """
    simulated = [sample for sample in analysis.samples if not sample.is_data]
    if events < len(simulated):
        raise SettingsError(
            f"demo events={events}: release {analysis.release} has {len(simulated)} simulated samples, "
            f"each of at least one event; write for example {RunSettings.demo_events}"
        )
    toys = LAYOUTS[analysis.release].toys
    weights = [toys[sample.name].entries or sample.entries or 0 for sample in simulated]
    total = sum(weights)
    counts = np.array([events * weight // total for weight in weights])
    remainders = np.array([events * weight % total for weight in weights])
    counts[np.argsort(-remainders, kind="stable")[: events - counts.sum()]] += 1
    while (counts == 0).any():
        counts[counts.argmin()] += 1
        counts[counts.argmax()] -= 1
    return {sample.name: int(count) for sample, count in zip(simulated, counts, strict=True)}


def lumi_ifb(analysis: Analysis, sample: Sample) -> float:
    """Return the luminosity of a data sample in fb⁻¹: its share, by entries, of that of its period."""
    period = next(period for period in analysis.periods if period.name == sample.period)
    entries = sum(one.entries or 0 for one in analysis.samples if one.period == sample.period)
    return period.lumi_ifb * ((sample.entries or 0) / entries)


def simulated_block(
    rng: np.random.Generator, analysis: Analysis, sample: Sample, n: int, *, first: int, entries: int
) -> Columns:
    """Draw n of a sample's ``entries`` simulated events, numbered from ``first``: branches of n events."""
    layout = LAYOUTS[analysis.release]
    return layout.simulated(rng, layout.toys[sample.name].draw(rng, n), sample, first, entries)


def data_block(rng: np.random.Generator, analysis: Analysis, sample: Sample) -> Columns:
    """Draw the events of a data sample, shuffled.

    Each simulated sample contributes a Poisson number of events about its expectation at the luminosity of
    the data sample.
    """
    layout = LAYOUTS[analysis.release]
    toys = [layout.toys[simulated.name] for simulated in analysis.samples if not simulated.is_data]
    lumi = lumi_ifb(analysis, sample)
    numbers = [int(rng.poisson(toy.events_per_ifb * lumi)) for toy in toys]
    four = concatenated([toy.draw(rng, n) for toy, n in zip(toys, numbers, strict=True)])
    order = rng.permutation(sum(numbers))
    return layout.data(rng, rows_of(four, order), toys, np.repeat(np.arange(len(toys)), numbers)[order])


def blocks(sample: Sample, analysis: Analysis, events: int, *, all_branches: bool) -> Iterator[Columns]:
    """Generate the columns of a sample in blocks, each with its own stream of random numbers.

    A block depends only on the seed, the sample, ``events`` and its index. The branches that the analysis
    does not read have streams of their own, so that the other branches are the same without them.
    """
    layout = LAYOUTS[analysis.release]
    index = analysis.sample_names.index(sample.name)
    entries = 0 if sample.is_data else shares(analysis, events)[sample.name]
    starts = (0,) if sample.is_data else range(0, entries, BLOCK_ENTRIES)
    for block, first in enumerate(starts):
        seed = [DEMO_SEED, *layout.stream, index, block]
        rng = np.random.default_rng(seed)
        if sample.is_data:
            columns = data_block(rng, analysis, sample)
        else:
            n = min(BLOCK_ENTRIES, entries - first)
            columns = simulated_block(rng, analysis, sample, n, first=first, entries=entries)
        if all_branches:
            columns |= layout.unread.columns(np.random.default_rng([*seed, 1]), ak.to_numpy(ak.num(columns["lep_pt"])))
        yield columns


def write_file(sample: Sample, analysis: Analysis, events: int, path: Path, *, all_branches: bool) -> None:
    """Write the file of a sample: one tree, ZLIB level 1, for each block one basket of each branch."""
    layout = LAYOUTS[analysis.release]
    types = {**layout.types, **(layout.unread.types() if all_branches else {})}
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        # The counter of lep_pt and the other lepton branches is lep_n, that of the jets jet_n, and so on. Counters
        # are int32: uproot writes no std::vector into a TTree, and no other type of counter.
        tree = file.mktree(analysis.tree, types, counter_name=layout.unread.counter)
        for columns in blocks(sample, analysis, events, all_branches=all_branches):
            tree.extend(columns)


def demo_file(
    sample: Sample, analysis: Analysis, events: int, directory: Path, *, all_branches: bool = False, write: bool = True
) -> Path:
    """Return the path of a sample's toy file, which is written if it does not exist.

    Parameters
    ----------
    sample, analysis
        The sample, and the analysis of the toy release.
    events
        Number of simulated events of all samples together; data do not depend on it.
    directory
        Directory of the cache; the file is written in ``directory/v<version>-<events>/`` or, with
        all branches, ``directory/v<version>-<events>-full/``, under its name in the release.
    all_branches
        Write all branches of the real files, so that reading takes as long as there.
    write
        Whether to write the file; otherwise its path is returned only.

    Raises
    ------
    SettingsError
        There are fewer events than simulated samples.
    OSError
        The directory cannot be written.

    Processes that need the same file wait for the first of them, which writes the
    file under another name and renames it, so that a file that exists is complete.
    """
    path = directory / f"v{DEMO_VERSION}-{events}{'-full' if all_branches else ''}" / sample.file
    if path.exists() or not write:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            temporary = path.with_name(f"{path.name}.part")
            write_file(sample, analysis, events, temporary, all_branches=all_branches)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # otherwise a crash of the machine may leave the new name with missing bytes
            os.replace(temporary, path)
    return path
