"""The local path of a sample's file: in a directory, downloaded into the cache, or generated for the demo."""

from __future__ import annotations

from pathlib import Path

from common.analyses import Analysis, Sample
from common.errors import DataError, SettingsError
from common.settings import RunSettings, is_url
from physics import ANALYSES
from workers.data_loader.remote.fetch import Fetcher
from workers.data_loader.remote.transfer import ProgressCallback


def locate(sample: Sample, settings: RunSettings, fetcher: Fetcher, progress: ProgressCallback | None = None) -> Path:
    """Return the local path of a sample's file, downloading or generating it if necessary.

    ``progress`` is called with the number of bytes downloaded so far and, if it is known, the
    size of the file. Raises DataError (FetchError for a remote file), which names the file
    and what to do.
    """
    analysis = ANALYSES[settings.release]
    if analysis.make_file is not None:
        try:
            return analysis.make_file(analysis, sample, settings.demo_events, fetcher.cache / analysis.release)
        except OSError as error:
            raise DataError(f"the demo release cannot be written in {fetcher.cache} (CACHE): {error}") from error
    if settings.data is None or is_url(settings.data):
        bases = analysis.record_urls + analysis.other_urls if settings.data is None else (settings.data,)
        return fetcher.fetch_first([base + sample.file for base in bases], progress)
    path = _in_directory(sample, Path(settings.data))
    if path is None:
        missing = Path(settings.data) / sample.file
        cause = "a directory, not a ROOT file" if missing.is_dir() else "no such file"
        raise DataError(f"{missing}: {cause}; check DATA (--data)")
    return path


def check_directory(analysis: Analysis, settings: RunSettings) -> None:
    """Raise SettingsError if ``settings.data`` is a directory that has none of the run's files."""
    if settings.data is None or is_url(settings.data):
        return
    directory = Path(settings.data)
    if not directory.is_dir():
        raise SettingsError(f"DATA={settings.data!r}: no such directory; give the one that holds Data/ and MC/")
    samples = analysis.in_order(settings.samples or analysis.sample_names)
    if not any(_in_directory(sample, directory) for sample in samples):
        raise SettingsError(
            f"DATA={settings.data!r}: the directory has none of the run's files, for example {samples[0].file}; "
            "give the directory that holds Data/ and MC/"
        )


def _in_directory(sample: Sample, directory: Path) -> Path | None:
    """Return the sample's file in the release's layout, or directly in the directory as a browser saves it."""
    for path in (directory / sample.file, directory / Path(sample.file).name):
        if path.is_file():
            return path
    return None
