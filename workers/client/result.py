"""The result of a run as Python objects: histograms, tables, fit and figures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import AnalysisError, ResultError, SettingsError
from common.names import is_name
from common.result_folder import MAX_BYTES, write_folder

if TYPE_CHECKING:
    import hist
    import pyhf
    from matplotlib.figure import Figure

    from common.analyses import Observable
    from workers.client.tables import Table

RESULT = "result.json"
#: What every result.json has, and the type of each.
_KEYS: Mapping[str, type] = {
    "run_id": str, "release": str, "complete": bool, "problems": list, "settings": dict, "samples": dict,
    "categories": dict, "histograms": dict,
}  # fmt: skip


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """The result of a run; its parts are made when they are first used.

    Parameters
    ----------
    document
        The content of result.json.
    files
        The files of the result folder by name: result.json, histograms.root, workspace.json, and the plots if
        they were drawn.
    """

    document: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return str(self.document["run_id"])

    @property
    def complete(self) -> bool:
        """Whether every event of the run was analysed; ``problems`` says what is missing."""
        return bool(self.document["complete"])

    @property
    def problems(self) -> Sequence[str]:
        """What is missing: why the run is not complete, or which plots of a complete run could not be drawn."""
        return list(self.document["problems"])

    @property
    def warnings(self) -> Sequence[str]:
        """What a reader of the numbers has to know: what is missing, empty, or not scaled to the data."""
        return list(self.document.get("warnings", ()))

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the numbers come from, for example the files that were read; empty if the result does not say."""
        return dict(self.document.get("provenance") or {})

    @cached_property
    def histograms(self) -> Mapping[str, hist.Hist[Any]]:
        """The histograms by name, with the axes ``category`` and that of the observable, and weighted storage.

        Values and variances are those of result.json. There are no flow bins: events outside of the
        axis are not part of a result.
        """
        return {name: self._histogram(name, content) for name, content in self.document["histograms"].items()}

    @cached_property
    def cutflow(self) -> Table:
        """The number of events of each sample after each step of the selection, and the sample's yield."""
        rows = {
            name: {**sample["cutflow"], "yield": sample["yield"], "yield_error": sample["yield_error"]}
            for name, sample in self.document["samples"].items()
        }
        return self._table(0, rows)

    @cached_property
    def yields(self) -> Table:
        """The selected events of each category, and the yield with its statistical uncertainty."""
        return self._table(1, {name: dict(category) for name, category in self.document["categories"].items()})

    @property
    def fit(self) -> Mapping[str, Any] | None:
        """The fit: ``signal_strength`` and the other numbers of result.json. None without one; see ``fit_problem``."""
        return self.document.get("fit")

    @property
    def fit_problem(self) -> str | None:
        """Why there is no fit; None if there is one."""
        return None if self.fit else self.document.get("fit_problem") or "the run was not fitted"

    @cached_property
    def workspace(self) -> pyhf.Workspace | None:
        """The model and the data of the fit as a pyhf workspace; None without one; see ``fit_problem``."""
        import pyhf

        workspace = self.document.get("workspace")
        return None if workspace is None else pyhf.Workspace(workspace)

    @property
    def figures(self) -> Sequence[str]:
        """The names of the figures that ``plot`` draws: the histograms, and the figures of the fit if there is one.

        Raises SettingsError if the code of the analysis is not known: see ``load``.
        """
        from workers.visualisation.result_files import fit_figures

        return [*self.document["histograms"], *fit_figures(self.document)]

    def plot(self, name: str) -> Figure:
        """Draw a figure, the same as in the result folder, to show, change or save.

        The figure does not belong to pyplot, so that it needs no ``close``. Raises ResultError if the result
        has no figure of this name, and SettingsError as ``figures``.
        """
        from workers.visualisation.plots.fit import draw_figure

        if name not in self.figures:
            raise ResultError(f"run {self.run_id} has no figure {name!r}; it has {', '.join(self.figures)}")
        return draw_figure(self.document, name)

    def save(self, output: str | Path) -> Path:
        """Write the files of the result to ``output/run_id``, and return that folder.

        Raises OSError if it cannot be written.
        """
        return write_folder(self.files, Path(output), self.run_id)

    def __repr__(self) -> str:
        lines = [f"<Result {self.run_id}: {'complete' if self.complete else 'INCOMPLETE'}>"]
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def __str__(self) -> str:
        from rich.console import Console

        from common.display import MAX_TABLE_WIDTH, print_result
        from physics import ANALYSES

        text = io.StringIO()
        console = Console(file=text, width=MAX_TABLE_WIDTH, color_system=None, force_jupyter=False)
        print_result(self.document, console, ANALYSES)
        return "\n".join([repr(self).splitlines()[0], *(line.rstrip() for line in text.getvalue().splitlines())])

    def _table(self, index: int, rows: Mapping[str, Mapping[str, float]]) -> Table:
        from common.display import tables
        from workers.client.tables import Table

        return Table(rows, tables(self.document)[index])

    def _histogram(self, name: str, content: Mapping[str, Any]) -> hist.Hist[Any]:
        import hist
        import numpy as np

        categories = [category for category in content if category != "edges"]
        observable = self._observable(name)
        try:
            histogram = hist.Hist(
                hist.axis.StrCategory(categories, name="category", overflow=False),
                hist.axis.Variable(
                    content["edges"],
                    name=observable.name if observable else name,
                    label=observable.axis_label if observable else name,
                    flow=False,
                ),
                storage=hist.storage.Weight(),
                name=name,
                label=observable.caption if observable else name,
            )
            numbers = [(content[category]["values"], content[category]["variances"]) for category in categories]
            # To the shape (categories, bins, 2) of values and variances.
            histogram[...] = np.moveaxis(np.asarray(numbers, dtype=np.float64), 1, -1)
        except (KeyError, TypeError, ValueError) as error:
            raise ResultError(f"run {self.run_id}: histogram {name!r} cannot be read: {error}") from None
        return histogram

    def _observable(self, name: str) -> Observable | None:
        """The observable of a histogram; None if this version of the program does not have the analysis."""
        from workers.visualisation.plots.histograms import result_analysis

        try:
            return result_analysis(self.document).histograms.get(name)
        except SettingsError:
            return None


def load(folder: str | Path, analysis: str | Path | None = None) -> Result:
    """Load the result of an earlier run from its folder, for example ``results/20260131-235959-demo-1f3a``.

    A result that is not complete is loaded, too: see ``Result.complete``. To draw figures of an analysis of your own,
    give its file as ``analysis``, unchanged since the run. Raises ResultError if the folder has no result.json or it
    is damaged, and AnalysisError if the file of the analysis cannot be used, or is not that of the run.
    """
    folder = Path(folder).expanduser()
    try:
        text = (folder / RESULT).read_text(encoding="utf-8")
        files = [path for path in folder.iterdir() if is_name(path.name) and path.is_file()]
        if sum(path.stat().st_size for path in files) > MAX_BYTES:
            raise ResultError(f"{folder} has more than {MAX_BYTES // 2**20} MiB of files, which no result has")
        content = {path.name: path.read_bytes() for path in files}
    except OSError as error:
        raise ResultError(
            f"{folder / RESULT} cannot be read: {error.strerror or error}; give the folder of a run, "
            "for example results/RUN_ID"
        ) from None
    except UnicodeDecodeError as error:
        raise ResultError(f"{folder / RESULT} is damaged: {error}") from None
    document = _document(text, folder / RESULT)
    if analysis is not None:
        _load_analysis(Path(analysis), document)
    return Result(document, content)


def _load_analysis(file: Path, document: Mapping[str, Any]) -> None:
    """Load the analysis of a run from its file; raises AnalysisError if it is another one."""
    from physics import ANALYSES

    loaded = ANALYSES.load(file)
    name, sha256 = document.get("analysis"), (document.get("provenance") or {}).get("analysis_sha256")
    if (loaded.name, loaded.sha256) != (name, sha256):
        raise AnalysisError(
            f"{file}: this is not the analysis of the run: that is {name!r} with the SHA-256 {sha256}, this file's "
            f"is {loaded.name!r} with {loaded.sha256}; give the file of the run, unchanged, and use the same version "
            "of the project"
        )


def _document(text: str, path: Path) -> Mapping[str, Any]:
    """Read a result.json; raises ResultError if it is not one."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ResultError(f"{path} is damaged: {error}") from None
    wrong = [
        key for key, kind in _KEYS.items() if not isinstance(document, dict) or type(document.get(key)) is not kind
    ]
    if wrong:
        raise ResultError(f"{path} is not the result of a run: it has no valid {', '.join(wrong)}")
    return dict(document)
