"""What the page answers: read-only, from memory and the output folder, with nothing from anywhere else."""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from workers.visualisation.archive import Archive, Entry
from workers.visualisation.page import pictures, views, wording
from workers.visualisation.page.document import Documents, of_live
from workers.visualisation.page.live import LiveRuns
from workers.visualisation.page.partial_plot import Painter
from workers.visualisation.page.security import OF_A_FILE, Secured
from workers.visualisation.page.streams import State, Streams

HERE = Path(__file__).parent
PER_PAGE = 50
MAX_QUERY = 100
STATIC = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class Page:
    """The page of one visualisation service."""

    def __init__(self, live: LiveRuns, archive: Archive, stopping: threading.Event) -> None:
        self._live, self._archive = live, archive
        self._documents = Documents(archive)
        self._painter = Painter()
        self._streams = Streams(stopping)
        self._static = {name: (HERE / "static" / name).read_bytes() for name in STATIC}
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, auto_reload=False,
        )  # fmt: skip
        self._templates.globals.update(views=views, pictures=pictures, wording=wording)

    def application(self) -> ASGIApp:
        """The page as an ASGI application."""
        return Secured(
            Starlette(
                routes=[
                    Route("/", self._runs_page),
                    Route("/events", self._runs_events),
                    Route("/runs/{run_id}", self._run_page),
                    Route("/runs/{run_id}/events", self._run_events),
                    Route("/runs/{run_id}/partial.png", self._partial_plot),
                    Route("/runs/{run_id}/files/{name}", self._file),
                    Route("/static/{name}", self._static_file),
                    Route("/favicon.ico", self._icon),  # for the files, which name none
                ],
                exception_handlers={HTTPException: self._refuse, Exception: self._refuse},
            )
        )

    def close(self) -> None:
        """Draw nothing more."""
        self._painter.close()

    # The list of runs

    def _runs_page(self, request: Request) -> Response:
        return self._html("runs.html", self._list_context(request))

    async def _runs_events(self, request: Request) -> Response:
        context = self._list_context(request)  # refuses what the page itself refuses

        def state() -> State:
            silent = sum(run.state == "silent" for run in self._live.all())
            key = (self._live.version, self._archive.entries()[:1], len(self._archive.entries()), silent)
            return key, lambda: self._render("runs_main.html", self._list_context(request)), False

        return self._streams.of(f"list {context['query']} {context['number_of_page']}", state)

    def _list_context(self, request: Request) -> dict[str, Any]:
        query = request.query_params.get("q", "").strip()[:MAX_QUERY]
        wanted = request.query_params.get("page", "1")
        live = self._live.all()
        failed = [run for run in live if run.failed is not None]
        ended: list[tuple[float, Any]] = [(entry.written_ns / 1e9, entry) for entry in self._archive.entries()]
        if failed:
            ended += [(run.failed or 0.0, run) for run in failed]
            ended.sort(key=lambda item: item[0], reverse=True)
        if query:
            ended = [item for item in ended if query.lower() in item[1].run_id.lower()]
        pages = max(1, math.ceil(len(ended) / PER_PAGE))
        page = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 9 else 1
        page = min(max(page, 1), pages)
        shown = [item for _, item in ended[(page - 1) * PER_PAGE : page * PER_PAGE]]
        return {
            "live": [(run, of_live(run)) for run in live if run.failed is None],
            "rows": [
                views.row(item, self._documents.summary(item.run_id, item.written_ns))
                if isinstance(item, Entry) else views.failed_row(item)
                for item in shown
            ],
            "query": query,
            "number_of_page": page,
            "pages": pages,
            "ended": len(ended),
        }  # fmt: skip

    # One run

    def _run_page(self, request: Request) -> Response:
        return self._html("run.html", self._run_context(request.path_params["run_id"]))

    async def _run_events(self, request: Request) -> Response:
        run_id = request.path_params["run_id"]
        self._key_of_run(run_id)

        def state() -> State:
            run = self._live.get(run_id)
            if run is not None:
                self._painter.watch(run)
            return (
                self._key_of_run(run_id),
                lambda: self._render("run_main.html", self._run_context(run_id)),
                run is None,
            )

        return self._streams.of(f"run {run_id}", state)

    def _key_of_run(self, run_id: str) -> object:
        """What a run's page depends on: another key, another page. Raises a 404 for a run that is not known."""
        run = self._live.get(run_id)
        if run is not None:
            picture = self._painter.picture(run_id)
            return run.version, run.state, picture and picture.version, int(run.quiet_s) // 5
        return self._entry(run_id)

    def _run_context(self, run_id: str) -> dict[str, Any]:
        run = self._live.get(run_id)
        if run is not None:
            picture = self._painter.picture(run_id)
            return {
                "run_id": run_id,
                "run": run,
                "document": of_live(run),
                "picture": picture if picture and picture.png else None,
            }
        entry = self._entry(run_id)
        document = self._documents.whole(run_id, entry.written_ns)
        files = self._archive.files(run_id)
        return {
            "run_id": run_id,
            "run": None,
            "document": document,
            "row": views.row(entry, document),
            "files": files,
            "plots": pictures.plots(files, document),
            # A run that is done again has the same addresses: the pictures' change with its result.
            "version": entry.written_ns,
        }

    def _entry(self, run_id: str) -> Entry:
        """A finished run; raises a 404 for one that is not known."""
        entry = self._archive.find(run_id)
        if entry is None:
            raise _NotFound("There is no such run. It may have been pruned, or never have begun.")
        return entry

    async def _partial_plot(self, request: Request) -> Response:
        run = self._live.get(request.path_params["run_id"])
        if run is None:
            raise _NotFound("There is no such run under way.")
        drawing = self._painter.watch(run)
        if drawing is not None and self._painter.picture(run.run_id) is None:
            await asyncio.wrap_future(drawing)
        picture = self._painter.picture(run.run_id)
        if picture is None or not picture.png:
            raise _NotFound("Nothing has been drawn of this run yet.")
        return Response(picture.png, media_type="image/png", headers={"cache-control": "no-cache"})

    # Files

    def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        content = self._archive.read(request.path_params["run_id"], name)
        if content is None:
            raise _NotFound("There is no such file.")
        is_shown = pictures.is_shown(name)
        headers = dict(OF_A_FILE) if is_shown else {"content-disposition": f'attachment; filename="{name}"'}
        return _bytes(request, content, pictures.media_type(name), headers)

    def _static_file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise _NotFound("There is no such file.")
        return _bytes(request, self._static[name], STATIC[name], {})

    def _icon(self, request: Request) -> Response:
        return _bytes(request, self._static["icon.svg"], STATIC["icon.svg"], {})

    # How it is said

    def _html(self, template: str, context: Mapping[str, Any], status: int = 200) -> Response:
        return HTMLResponse(self._render(template, context), status, headers={"cache-control": "no-cache"})

    def _render(self, template: str, context: Mapping[str, Any]) -> str:
        return self._templates.get_template(template).render(context)

    async def _refuse(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        text = _REFUSALS.get(status, "This cannot be answered.")
        if isinstance(error, _NotFound):
            text = error.detail
        return self._html("error.html", {"status": status, "text": text}, status)


class _NotFound(HTTPException):
    """There is no such run or file; ``detail`` is the sentence for whoever looks for it."""

    def __init__(self, detail: str) -> None:
        super().__init__(404, detail)


_REFUSALS = {
    404: "There is no such page.",
    405: "This page only shows; it changes nothing.",
    500: "Something went wrong here; the service's log says what.",
    503: "Too many people watch. Reload the page to see what is new.",
}


def _bytes(request: Request, content: bytes, kind: str, headers: Mapping[str, str]) -> Response:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**headers, "etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)
