"""Load a user's own analysis from a Python file.

The file defines ``ANALYSIS``, an ``Analysis``, or ``ANALYSES``, a tuple of them, one for each release. Its name
without ``.py`` is the name of the analysis. The SHA-256 of an analysis covers its file and the sources of
``physics``. Files come from the operator; a message carries a name and a SHA-256 only.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from common.analyses import Analyses, Analysis
from common.errors import AnalysisError, SettingsError
from common.names import NAME_IS, is_name

P = ParamSpec("P")
T = TypeVar("T")

#: A file of more than this is not an analysis, in bytes; a ConfigMap of Kubernetes has as much room.
MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class OwnCode:
    """The file of an own analysis, with the content that a process has loaded; it may have another one by now."""

    path: Path
    source: bytes


class PhysicsAnalyses(Analyses):
    """The releases of the shipped analysis, and every own analysis that this process has loaded."""

    def __init__(self, *analyses: Analysis) -> None:
        super().__init__(*analyses, sha256=sources_sha256())
        self._loaded: dict[tuple[str, str], Analyses] = {}
        self._code: dict[tuple[str, str], OwnCode] = {}
        self._lock = threading.RLock()
        self._loading: set[str] = set()

    def find(self, name: str, sha256: str) -> Analyses:
        """Return the shipped analysis, or one that this process has loaded."""
        if name == self.name:
            return super().find(name, sha256)
        try:
            return self._loaded[name, sha256]
        except KeyError:
            raise SettingsError(
                f"the analysis {name!r} with the SHA-256 {sha256 or '(none given)'} is not loaded; give its file, "
                "unchanged since the run: analysis.load(FOLDER, analysis=FILE)"
            ) from None

    def in_folder(self, folder: Path | None, service: str | None = None) -> Analyses:
        """Return these analyses with those in the files of a folder; an error names the service that lacks one."""
        return AnalysisFolder(self, folder, service)

    def load(self, path: Path) -> Analyses:
        """Load the analysis of a file, unless this process has loaded the same code before.

        A file that has changed is loaded beside its earlier versions. Raises AnalysisError for a file that cannot
        be read or imported, or that does not define an analysis.
        """
        return self.load_code(OwnCode(path, _read(path)))

    def load_code(self, code: OwnCode) -> Analyses:
        """Load the analysis of a file with this content, whatever it holds now; raises AnalysisError as ``load``."""
        path, source = code.path, code.source
        name = path.stem
        if name == self.name or not is_name(name):
            raise AnalysisError(
                f"{path}: an own analysis cannot be called {name!r}; give the file another name ({NAME_IS})"
            )
        sha256 = hashlib.sha256(self.sha256.encode() + source).hexdigest()
        with self._lock:
            if (name, sha256) not in self._loaded:
                if name in self._loading:  # by this thread: the lock is held
                    raise AnalysisError(
                        f"{path}: the file uses itself as an analysis while it is imported; put what runs it under "
                        'if __name__ == "__main__":'
                    )
                self._loading.add(name)
                try:
                    found = _analyses(path, source, f"own_analysis_{name}_{sha256}")
                finally:
                    self._loading.remove(name)
                named = (replace(one, name=name) for one in found)
                self._loaded[name, sha256] = Analyses(*named, sha256=sha256)
                self._code[name, sha256] = code
            return self._loaded[name, sha256]

    def code_of(self, name: str, sha256: str) -> OwnCode | None:
        """Return the code of an own analysis that this process has loaded; None for any other one."""
        return self._code.get((name, sha256))

    def code_of_result(self, result: Mapping[str, Any]) -> OwnCode | None:
        """Return the code of a result document's analysis, as ``code_of``."""
        return self.code_of(result.get("analysis", ""), result.get("provenance", {}).get("analysis_sha256", ""))


class AnalysisFolder(Analyses):
    """The analyses of ``physics``, and those in the files ``NAME.py`` of a folder, which are loaded when asked for."""

    def __init__(self, analyses: PhysicsAnalyses, folder: Path | None, service: str | None) -> None:
        super().__init__(*analyses.values(), sha256=analyses.sha256)
        self._physics, self._folder = analyses, folder
        self._who = service or "this machine"
        self._what_to_do = "requeue the dead letter" if service else "run again"

    def find(self, name: str, sha256: str) -> Analyses:
        """Return the analysis of that name and checksum; without a checksum, what the file holds now.

        Raises SettingsError, which says what is missing here, and what to do.
        """
        with suppress(SettingsError):
            return self._physics.find(name, sha256)
        if name == self.name:
            raise SettingsError(
                f"{self._who} has other code of the analysis {name!r} than the run: the SHA-256 is {self.sha256} here "
                f"and {sha256} there; use the same version of the project everywhere, then {self._what_to_do}"
            )
        path = None if self._folder is None or not is_name(name) else self._folder / f"{name}.py"
        if path is None or not path.exists():
            raise SettingsError(
                f"{self._who} has no analysis {name!r}: {'ANALYSES_DIR' if path is None else path} does not exist; "
                f"put the file there, then {self._what_to_do}"
            )
        found = self._physics.load(path)
        if sha256 and found.sha256 != sha256:
            raise SettingsError(
                f"{self._who} has other code of the analysis {name!r} than the run: the SHA-256 of {path} is "
                f"{found.sha256}, that of the run {sha256}; put the file of the run there, then {self._what_to_do}"
            )
        return found


def with_code(code: OwnCode | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a worker process, which first loads the code of an own analysis, if there is one.

    So a file may be edited while a run of its earlier content is under way.
    """
    from physics import ANALYSES

    if code is not None:
        ANALYSES.load_code(code)
    return function(*args, **kwargs)


@cache
def sources_sha256() -> str:
    """Return the SHA-256 of the sources of ``physics``: of every Python file's path and content, in order."""
    folder = Path(__file__).parent
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            source = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise AnalysisError(f"{path}: {error.strerror or error}; give a file that can be read") from None
    if len(source) > MAX_FILE_BYTES:
        raise AnalysisError(f"{path}: the file has more than {MAX_FILE_BYTES} bytes; it is no analysis")
    return source


def _analyses(path: Path, source: bytes, module_name: str) -> tuple[Analysis, ...]:
    """Import a source as a module of this name, and return the analyses that it defines."""
    module = ModuleType(module_name)
    module.__file__ = str(path)
    sys.modules[module_name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102  the file is the operator's
        return _defined(path, module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, KeyboardInterrupt | GeneratorExit | MemoryError):
            raise
        raise _import_error(path, error) from error


def _defined(path: Path, module: ModuleType) -> tuple[Analysis, ...]:
    single, several = getattr(module, "ANALYSIS", None), getattr(module, "ANALYSES", None)
    found = several if isinstance(several, tuple | list) else (single,)
    if not found or not all(isinstance(one, Analysis) for one in found):
        raise AnalysisError(
            f"{path}: the file defines no analysis; it must define ANALYSIS, an Analysis, or ANALYSES, a tuple of them"
        )
    releases = [one.release for one in found]
    for release in releases:
        if releases.count(release) > 1 or not is_name(release):
            raise AnalysisError(f"{path}: release {release!r} of ANALYSES: give each once; {NAME_IS}")
    return tuple(found)


def _import_error(path: Path, error: BaseException) -> AnalysisError:
    """Return the error of an import, with the last line of the file that was executed."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return AnalysisError(f"{path}:{error.lineno}: {error.msg}; the file is not valid Python")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}:{lines[-1]}" if lines else str(path)
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, AnalysisError):
        return error if not lines else AnalysisError(f"{where}: {text}")
    return AnalysisError(f"{where}: the file cannot be imported: {type(error).__name__}: {text}")
