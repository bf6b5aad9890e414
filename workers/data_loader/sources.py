"""Where the files of a release come from: a directory, an address, the cache, or the demo's generator."""

from __future__ import annotations

from pathlib import Path

from common.errors import DataError, SettingsError
from common.releases import Release, Sample
from common.settings import RunSettings, is_url
from physics import RELEASES
from workers.data_loader.demo import demo_file
from workers.data_loader.fetch import Progress, fetch_first


def locate(sample: Sample, settings: RunSettings, cache: Path, fetched: Progress | None = None) -> Path:
    """Return the local path of a sample's file, fetching or generating it where that is needed.

    ``fetched`` is called with the bytes that have come and, where it is known,
    how many there will be. Raises DataError (FetchError for a remote file) that
    names the file and the way out.
    """
    release = RELEASES[settings.release]
    if release.toy:
        try:
            return demo_file(sample, release, settings.demo_events, cache / release.name)
        except OSError as error:
            raise DataError(f"the demo release cannot be written in {cache} (CACHE): {error}") from error
    if settings.data is None or is_url(settings.data):
        bases = release.base_urls if settings.data is None else (settings.data,)
        return fetch_first([base + sample.file for base in bases], cache, progress=fetched)
    path = _in_directory(sample, Path(settings.data))
    if path is None:
        missing = Path(settings.data) / sample.file
        cause = "a directory, not a ROOT file" if missing.is_dir() else "no such file"
        raise DataError(f"{missing}: {cause}; is DATA (--data) right?")
    return path


def check_directory(release: Release, settings: RunSettings) -> None:
    """Raise SettingsError where ``settings.data`` is a directory that has none of the run's files."""
    if settings.data is None or is_url(settings.data):
        return
    directory = Path(settings.data)
    if not directory.is_dir():
        raise SettingsError(f"DATA={settings.data!r}: no such directory; give the one that holds Data/ and MC/")
    samples = release.in_order(settings.samples or release.sample_names)
    if not any(_in_directory(sample, directory) for sample in samples):
        raise SettingsError(
            f"DATA={settings.data!r}: none of the run's files is there, for example {samples[0].file}; "
            "give the directory that holds Data/ and MC/"
        )


def _in_directory(sample: Sample, directory: Path) -> Path | None:
    """The sample's file in the release's layout, or flat in the directory as a browser saves it."""
    for path in (directory / sample.file, directory / Path(sample.file).name):
        if path.is_file():
            return path
    return None
