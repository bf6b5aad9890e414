"""The routes of the web page; all are read-only, and no page loads anything from another site."""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from common.analyses import Analyses
from common.errors import SettingsError
from common.messages import TIMELINE
from workers.visualisation.archive import Archive, Entry
from workers.visualisation.page import comparison, measurement, rows, text
from workers.visualisation.page import document as documents
from workers.visualisation.page.document import Documents, to_document
from workers.visualisation.page.live import LiveRun, LiveRuns
from workers.visualisation.page.partial import partial_document, scaled_result
from workers.visualisation.page.rows import Row
from workers.visualisation.page.streams import PartialPlots, State, Streams
from workers.visualisation.page.timeline import Timeline, TimelineParts
from workers.visualisation.page.usage import usage_of
from workers.visualisation.plots.pool import DrawingPool

HERE = Path(__file__).parent
RUNS_PER_PAGE = 50
MAX_QUERY = 100
STATIC = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
#: The parts of the page of a run: the last part of their address, and their titles.
TABS = {
    "": "Result", "pipeline": "Pipeline", "timeline": "Timeline", "fit": "Fit",
    "tables": "Tables", "files": "Files", "settings": "Settings",
}  # fmt: skip
#: The columns of the list of runs: key, title and class.
COLUMNS = (
    ("run", "Run", ""), ("state", "State", ""), ("release", "Release", "wide"), ("samples", "Samples", "n wide"),
    ("cuts", "pT cuts [GeV]", "n wide"), ("strength", "μ", "n"), ("mass", "Mass", "n middle"),
    ("events", "Events", "n middle"), ("finished", "Finished", "middle"),
)  # fmt: skip
#: The most rows of finished runs that are kept in memory.
MAX_ROWS = 10_000
#: Headers of a file that the browser displays: browsers put it into a document with inline styles.
FILE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
ERRORS = {
    404: "There is no such page.",
    405: "This page is read-only.",
    500: "The page failed; the log of the visualisation service has the reason.",
    503: "There are too many viewers. Reload the page to see the current state.",
}


class Page:
    """The page of one visualisation service."""

    def __init__(
        self, live: LiveRuns, archive: Archive, pool: DrawingPool, stopping: threading.Event, analyses: Analyses
    ) -> None:
        self._live, self._archive, self._pipeline = live, archive, live.pipeline
        self._documents = Documents(archive, analyses)
        self._finished_row = lru_cache(maxsize=MAX_ROWS)(
            lambda entry: rows.row(entry, self._documents.read(entry.run_id, entry.written_ns))
        )
        self._timeline = lru_cache(maxsize=16)(self._read_timeline)
        self._plots = PartialPlots(pool)
        self._streams = Streams(stopping)
        self._static = {name: (HERE / "static" / name).read_bytes() for name in STATIC}
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, auto_reload=False,
        )  # fmt: skip
        self._templates.globals.update(documents=documents, text=text)

    def application(self) -> Starlette:
        """Return the page as an ASGI application."""
        return Starlette(
            routes=[
                Route("/", self._runs_page),
                Route("/events", self._runs_events),
                Route("/compare", self._compare_page),
                Route("/comparisons/{name}", self._measurement_page),
                Route("/comparisons/{run_id}/{name}", self._measurement_file),
                Route("/pipeline", self._pipeline_page),
                Route("/pipeline/events", self._pipeline_events),
                Route("/runs/{run_id}", self._run_page),
                Route("/runs/{run_id}/events", self._run_events),
                Route("/runs/{run_id}/partial.png", self._partial_plot),
                Route("/runs/{run_id}/all.zip", self._zip),
                Route("/runs/{run_id}/files/{name}", self._file),
                Route("/runs/{run_id}/{tab}", self._run_page),
                Route("/static/{name}", self._static_file),
                Route("/favicon.ico", self._icon),  # requested by browsers that display a file
            ],
            exception_handlers={HTTPException: self._error, Exception: self._error},
        )

    def _read_timeline(self, run_id: str, _written_ns: int) -> TimelineParts | None:
        """Return the timeline of a finished run; None if it has none, or one that cannot be read."""
        content = self._archive.read(run_id, TIMELINE)
        try:
            return Timeline.of_file(content or b"").parts()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    # The list of runs

    def _runs_page(self, request: Request) -> Response:
        return self._html("runs.html", self._list_context(request))

    async def _runs_events(self, request: Request) -> Response:
        view = _view(request)

        def state() -> State:
            silent = sum(run.state == "silent" for run in self._live.all())
            entries, measured = self._archive.entries(), measurement.archive(self._archive.output).entries()
            key = (self._live.version, entries[:1], len(entries), silent, measured)
            return State(key, lambda: self._render("runs_main.html", self._list_context(request)))

        return self._streams.response(f"list {view}", state)

    def _list_context(self, request: Request) -> dict[str, Any]:
        view, output = _view(request), self._archive.output
        live = self._live.all()
        ended: Sequence[LiveRun | Entry | Row] = [*(run for run in live if run.has_failed), *self._archive.entries()]
        if view["q"] or view["sort"]:  # else only the rows shown are read
            ended = rows.matching([self._row(run) for run in ended], view["q"])
        if view["sort"]:
            ended = rows.in_order([self._row(run) for run in ended], view["sort"], descending=view["order"] == "desc")
        pages = max(1, math.ceil(len(ended) / RUNS_PER_PAGE))
        page = min(max(view["page"], 1), pages)
        sorted_by, descending = view["sort"] or "finished", not view["sort"] or view["order"] == "desc"
        return {
            "live": [(run, partial_document(run)) for run in live if not run.has_failed],
            "rows": [self._row(run) for run in ended[(page - 1) * RUNS_PER_PAGE : page * RUNS_PER_PAGE]],
            "measurements": [
                (entry, measurement.read(output, entry.run_id, entry.written_ns))
                for entry in measurement.archive(output).entries()[: measurement.MAX_SHOWN]
            ],
            "view": view,
            "page": page,
            "pages": pages,
            "ended": len(ended),
            "columns": COLUMNS,
            "sorted_by": sorted_by,
            "sorting": "descending" if descending else "ascending",
            "sorts": {
                key: {**view, "page": 1, "sort": key, "order": "asc" if key == sorted_by and descending else "desc"}
                for key in rows.SORT_KEYS
            },
        }  # fmt: skip

    def _row(self, run: LiveRun | Entry | Row) -> Row:
        if isinstance(run, Entry):
            return self._finished_row(run)
        return rows.failed_row(run) if isinstance(run, LiveRun) else run

    def _compare_page(self, request: Request) -> Response:
        run_ids = request.query_params.getlist("run")
        if len(run_ids) != 2:
            raise _Refused(400, "Select two runs to compare.")
        for run_id in run_ids:
            self._entry(run_id)
        runs = dict(zip("AB", run_ids, strict=True))
        try:
            lines, tables = comparison.in_words(self._archive.output, runs)
        except SettingsError as error:
            raise _Refused(400, f"These runs cannot be compared: {error}.") from None
        return self._html("compare.html", {"runs": runs, "lines": lines, "tables": tables})

    def _measurement_page(self, request: Request) -> Response:
        output, name = self._archive.output, request.path_params["name"]
        entry = measurement.archive(output).find(name)
        if entry is None:
            raise _NotFound("There is no such comparison.")
        context = {
            "shown": measurement.read(output, name, entry.written_ns),
            "address": f"/comparisons/{name}",
            "files": [file.name for file in measurement.archive(output).files(name)],
            "picture": measurement.PICTURE,
            "version": entry.written_ns,
        }
        return self._html("measurement.html", context)

    def _measurement_file(self, request: Request) -> Response:
        return self._file_of(measurement.archive(self._archive.output), request)

    # The pipeline

    def _pipeline_page(self, request: Request) -> Response:
        return self._html("pipeline.html", {"pipeline": self._pipeline.state()})

    async def _pipeline_events(self, request: Request) -> Response:
        def state() -> State:
            return State(
                self._pipeline.version,
                lambda: self._render("pipeline_main.html", {"pipeline": self._pipeline.state()}),
            )

        return self._streams.response("pipeline", state)

    # One run

    def _run_page(self, request: Request) -> Response:
        return self._html("run.html", self._run_context(request.path_params["run_id"], _tab(request.path_params)))

    async def _run_events(self, request: Request) -> Response:
        run_id, tab = request.path_params["run_id"], _tab(request.query_params)
        self._run_key(run_id)  # raises a 404 if the run is not known

        def state() -> State:
            run = self._live.get(run_id)
            if run is not None and not tab:
                self._plots.request(run)
            return State(
                self._run_key(run_id),
                lambda: self._render("run_main.html", self._run_context(run_id, tab)),
                run is None,
            )

        return self._streams.response(f"run {run_id} {tab}", state)

    def _run_key(self, run_id: str) -> object:
        """Return a value that changes when the run's page does; raises a 404 if the run is not known."""
        run = self._live.get(run_id)
        if run is not None:
            plot = self._plots.plot(run_id)
            return run.version, run.state, plot and plot.version, int(run.silent_s) // 5, self._pipeline.version
        return self._entry(run_id)

    def _run_context(self, run_id: str, tab: str) -> dict[str, Any]:
        context: dict[str, Any] = {"run_id": run_id, "tab": tab, "tabs": TABS, "pipeline": self._pipeline.state()}
        run = self._live.get(run_id)
        if run is not None:
            plot = self._plots.plot(run_id)
            scaled = scaled_result(run) or {}
            return {
                **context,
                "run": run,
                "document": partial_document(run),
                "scaled": to_document(scaled) if scaled else partial_document(run),
                "progress": scaled.get("progress"),
                "plot": plot if plot and plot.png else None,
                "plots": [],
                "files": [],
                **self._timeline_context(self._live.timeline(run_id) if tab == "timeline" else None),
            }
        entry = self._entry(run_id)
        document = self._documents.whole(run_id, entry.written_ns)
        files = self._archive.files(run_id)
        timeline = self._timeline(run_id, entry.written_ns) if tab in ("timeline", "pipeline") else None
        return {
            **context,
            "run": None,
            "document": document,
            "row": rows.row(entry, document),
            "files": files,
            "plots": text.plots(files, document),
            **self._timeline_context(timeline),
            "version": entry.written_ns,  # in the plots' addresses, because a run may be repeated with the same id
        }

    def _timeline_context(self, timeline: TimelineParts | None) -> dict[str, Any]:
        if timeline is None:
            return {"timeline": None, "usage": {}}
        samples = timeline.samples or self._pipeline.samples(*timeline.limits)
        return {"timeline": timeline, "usage": usage_of(samples, timeline.limits)}

    def _entry(self, run_id: str) -> Entry:
        """Return a finished run; raises a 404 if it is not known."""
        entry = self._archive.find(run_id)
        if entry is None:
            raise _NotFound("There is no run with this id. It was deleted (RESULTS_KEEP) or has not started.")
        return entry

    async def _partial_plot(self, request: Request) -> Response:
        run = self._live.get(request.path_params["run_id"])
        if run is None:
            raise _NotFound("No run with this id is under way.")
        drawing = self._plots.request(run)
        if drawing is not None and self._plots.plot(run.run_id) is None:
            await asyncio.gather(asyncio.wrap_future(drawing), return_exceptions=True)
        plot = self._plots.plot(run.run_id)
        if plot is None or not plot.png:
            raise _NotFound("This run has no plot yet.")
        return Response(plot.png, media_type="image/png", headers={"cache-control": "no-cache"})

    # Files

    def _file(self, request: Request) -> Response:
        return self._file_of(self._archive, request)

    def _file_of(self, archive: Archive, request: Request) -> Response:
        name = request.path_params["name"]
        content = archive.read(request.path_params["run_id"], name)
        if content is None:
            raise _NotFound("There is no such file.")
        is_displayed = text.is_displayed(name)
        headers = FILE_HEADERS if is_displayed else {"content-disposition": f'attachment; filename="{name}"'}
        return _bytes(request, content, text.media_type(name), headers)

    def _zip(self, request: Request) -> Response:
        run_id = request.path_params["run_id"]
        content = self._archive.zipped(run_id)
        if content is None:
            raise _NotFound("There is no finished run with this id.")
        return _bytes(
            request, content, "application/zip", {"content-disposition": f'attachment; filename="{run_id}.zip"'}
        )

    def _static_file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise _NotFound("There is no such file.")
        return _bytes(request, self._static[name], STATIC[name], {})

    def _icon(self, request: Request) -> Response:
        return _bytes(request, self._static["icon.svg"], STATIC["icon.svg"], {})

    # Responses

    def _html(self, template: str, context: Mapping[str, Any], status: int = 200) -> Response:
        return HTMLResponse(self._render(template, context), status, headers={"cache-control": "no-cache"})

    def _render(self, template: str, context: Mapping[str, Any]) -> str:
        return self._templates.get_template(template).render(context)

    async def _error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        message = error.detail if isinstance(error, _Refused) else ERRORS.get(status, "This request is not valid.")
        return self._html("error.html", {"status": status, "message": message}, status)


class _Refused(HTTPException):
    """A request that cannot be answered; ``detail`` is shown to the viewer."""


class _NotFound(_Refused):
    """A run or file does not exist."""

    def __init__(self, detail: str) -> None:
        super().__init__(404, detail)


def _view(request: Request) -> dict[str, Any]:
    """Return which part of the list is requested: the words of the filter, the key and order of sorting, the page."""
    given = request.query_params
    sort, page = given.get("sort", ""), given.get("page", "1")
    return {
        "q": given.get("q", "").strip()[:MAX_QUERY],
        "sort": sort if sort in rows.SORT_KEYS else "",
        "order": "asc" if given.get("order") == "asc" else "desc",
        "page": int(page) if page.isascii() and page.isdigit() and len(page) < 9 else 1,
    }


def _tab(given: Mapping[str, str]) -> str:
    """Return the name of the requested part of a run; raises a 404 for one that does not exist."""
    tab = given.get("tab", "")
    if tab not in TABS:
        raise _NotFound(ERRORS[404])
    return tab


def _bytes(request: Request, content: bytes, media_type: str, headers: Mapping[str, str]) -> Response:
    """Return a response with a file, or with status 304 if the browser has this content in its cache."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**headers, "etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
