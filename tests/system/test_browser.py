"""The page in a browser: a run is submitted, followed and opened, with the four services and a broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from common import settings, topology
from common.messages import Chunk, Progress, QueueStatus, Result, RunFailed
from common.settings import RunSettings
from common.submission import follow, new_run_id, submit
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from tests.support.runs import QuietDisplay
from tests.support.waiting import wait_until
from tests.support.workers import Workers
from tests.unit.test_page import (
    RUN,
    Site,
    document,
    finished,
    quiet_port,
    spans,
    status,
    status_messages,
    under_way,
)
from tests.unit.test_page_comparisons import write_comparison

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DEADLINE_MS = 90_000
#: A run of more than three hundred chunks, long enough to see its progress.
DEMO = RunSettings(release="demo", demo_events=60_000, chunk_entries=500)

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium with a new profile."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"needs Chromium: apt-get install chromium puts it at {CHROMIUM}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, headless=True, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A tab; the test fails if the browser has logged an error in the end."""
    context = browser.new_context(viewport={"width": 1280, "height": 1380})
    page = context.new_page()
    page.set_default_timeout(DEADLINE_MS)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    # The browser logs a lost connection, which the page handles.
    assert [text for text in errors if "ERR_CONNECTION" not in text and "ERR_INCOMPLETE" not in text] == []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "results")
    yield made
    made.service.close()


def before_deadline(seconds: float) -> Callable[[], bool]:
    """Return a function that is True for so many seconds."""
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() < deadline


def open_link(tab: Page, selector: str) -> None:
    """Click a link, and wait until its page is loaded."""
    with tab.expect_navigation():
        tab.click(selector)


def links(tab: Page) -> set[str]:
    """Return the addresses of the page's links."""
    found: list[str] = tab.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
    return {link for link in found if "#" not in link}


def analysed(tab: Page) -> float:
    """Return the value of the bar of the analysed events."""
    bar = """document.querySelector('[data-stage="analysis"] progress')?.getAttribute('value')"""
    return float(tab.evaluate(bar) or 0)


def partial_plot(tab: Page) -> str:
    """Return the address of the plot of the run under way."""
    return str(tab.evaluate("document.querySelector('#partial-plot')?.getAttribute('src')") or "")


@pytest.mark.broker
def test_a_run_is_shown_from_its_first_events_to_its_files(
    tab: Page, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = quiet_port()
    monkeypatch.setenv("PAGE_PORT", str(port))
    workers.start_all()
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: requests.get(url, timeout=30).ok, "the page answered")
    tab.goto(url)
    assert "No run has finished yet" in tab.inner_text("main")

    run_id = new_run_id(DEMO.release)
    session = RabbitMQTransport(workers.settings, connect_timeout_s=60).open([topology.follower(run_id)], prefetch=100)
    submit(session, run_id, DEMO)
    tab.wait_for_selector(f"li:has-text('{run_id}')")  # without a reload
    assert tab.locator(f"li:has-text('{run_id}') .badge.toy").is_visible()
    open_link(tab, f"text={run_id}")
    assert tab.locator(".banner.toy").is_visible()
    wait_until(lambda: tab.locator(".side-by-side .mark").count() == 4, "the picture had a mark for each replica", 90)
    events = wait_until(lambda: analysed(tab), "the bar moved", 90)
    picture = wait_until(lambda: partial_plot(tab), "a plot was there", 90)
    wait_until(lambda: analysed(tab) > events, "the bar moved on", 90)
    wait_until(lambda: partial_plot(tab) not in {"", picture}, "the plot changed", 90)
    assert tab.evaluate("document.querySelector('#partial-plot').decode().then(() => true)")
    assert tab.title().startswith("TOY – ")

    outcome = follow(session, run_id, ANALYSES, QuietDisplay(), before_deadline(300))
    session.close()
    assert outcome.result is not None
    tab.wait_for_selector("h1 .badge.complete")  # without a reload
    assert tab.locator("h1 .badge.toy").is_visible()
    assert tab.locator(".banner.toy").is_visible()
    for image in tab.locator("figure img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
        assert "toy, not ATLAS data" in (image.get_attribute("alt") or "")
    assert tab.locator(".mark").count() == 0
    open_link(tab, "nav >> text=Timeline")
    assert tab.locator(".timeline tbody tr").count() >= 3
    open_link(tab, "nav >> text=Files")
    files = {link.rpartition("/")[2] for link in links(tab) if "/files/" in link}
    assert files == set(outcome.files)
    followed = links(tab)
    for link in followed:
        answer = requests.get(link, timeout=30)
        assert answer.status_code == 200
        if "/files/" in link:
            assert answer.content == outcome.files[link.rpartition("/")[2]]
    for link in followed:
        if not link.endswith((".root", ".zip")):  # which a browser downloads
            opened = tab.goto(link)
            assert opened is not None
            assert opened.ok, link
    tab.goto(f"{url}/runs/{run_id}")
    open_link(tab, "text=all runs")
    tab.wait_for_selector(f"tr:has-text('{run_id}') .badge.complete")


def test_every_link_can_be_followed_with_the_keyboard_alone(tab: Page, site: Site) -> None:
    finished(site.output, RUN, 1.7e9)
    tab.goto(site.url)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    reached: set[Any] = set()
    for _ in range(25):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.href || document.activeElement.tagName"))
    assert links(tab) <= reached
    assert {"INPUT", "BUTTON"} <= reached


def test_an_update_keeps_the_focus_and_the_typed_text(tab: Page, site: Site) -> None:
    finished(site.output, RUN, 1.7e9)
    tab.goto(site.url)
    tab.fill("#q", "2026")
    site.handle(*under_way("another", done=2))
    tab.wait_for_selector("text=2,000 of 10,000 events")
    assert tab.evaluate("document.activeElement.id") == "q"
    assert tab.input_value("#q") == "2026"
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/?q=2026")


def test_a_selected_run_stays_selected_when_others_are_listed(tab: Page, site: Site) -> None:
    for number, run_id in enumerate(("first", "second")):
        finished(site.output, run_id, 1.6e9 + number)
    tab.goto(site.url)
    tab.check("[value=first]")
    finished(site.output, "third", 1.7e9)
    tab.wait_for_selector("[value=third]")
    assert tab.is_checked("[value=first]")
    tab.check("[value=second]")
    open_link(tab, "text=Compare two selected runs")
    tab.wait_for_selector("text=A and B: the same bits")


def test_times_are_shown_in_utc_and_in_the_local_time(browser: Browser, site: Site) -> None:
    finished(site.output, RUN, 1.7e9)
    context = browser.new_context(timezone_id="Asia/Tokyo", locale="en-GB")
    tab = context.new_page()
    tab.goto(site.url)
    assert "2023-11-14 22:13 UTC" in tab.inner_text("td time")
    assert "15 Nov, 07:13 local" in tab.inner_text("td time")
    context.close()


def marks(tab: Page, state: str) -> int:
    """Return the number of replicas that the picture shows in a state."""
    return tab.locator(f".side-by-side .mark.{state}").count()


def test_a_killed_replica_is_seen_to_go_and_another_one_to_come(
    tab: Page, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.visualisation.page.pipeline.GONE_AFTER_S", 0.2)
    site.handle(*status_messages())
    tab.goto(site.url + "/pipeline")
    assert (marks(tab, "busy"), marks(tab, "waiting"), marks(tab, "gone")) == (2, 1, 0)

    def one_lives() -> bool:
        site.handle(status("one", time.time()), status("loader", time.time(), "data-loader"))
        site.handle(QueueStatus({}, time.time()))
        return marks(tab, "gone") == 1

    wait_until(one_lives, "the picture showed that a replica is gone")
    assert tab.locator("#happened + ul >> text=two (data-processor) is gone").is_visible()
    started = time.time()
    site.handle(*(status(name, started, since=started - 1) for name in ("one", "three", "four", "five")))
    wait_until(lambda: marks(tab, "busy") == 5, "the picture showed four processors and the loader")
    assert tab.locator("text=three (data-processor) has started").is_visible()


def test_a_page_reconnects_to_a_restarted_service(tab: Page, site: Site) -> None:
    site.handle(*under_way(RUN, done=2))
    tab.goto(f"{site.url}/runs/{RUN}")
    tab.wait_for_selector('[data-stage="analysis"]:has-text("2,000")')
    site.service.close()
    tab.wait_for_selector("text=connection lost")
    port = site.url.rpartition(":")[2]
    again = settings.read({"OUTPUT": str(site.output), "PAGE_PORT": port})
    site.service = type(site.service)(again)
    site.handle(*(Progress("analysis", Chunk(RUN, "Zee", 1000 * n, 1000 * n + 1000)) for n in range(4)))
    tab.wait_for_selector('[data-stage="analysis"]:has-text("4,000")')


@pytest.mark.parametrize(("scheme", "width"), [("light", 1920), ("dark", 360)])
def test_pages_fit_the_window_and_are_accessible(browser: Browser, site: Site, scheme: Any, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    site.handle(*under_way("live"), RunFailed("lost", "why" * 100), Result("live", False, document(release="demo")))
    write_comparison(site.output, "scan")
    finished(site.output, RUN, 1.7e9, document(complete=False, problems=["/a/very/long/path" * 20]))
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab = context.new_page()
    site.handle(*status_messages(), Progress("analysis", Chunk("live", "Zee", 3000, 4000), spans(1e9)))
    parts = [f"/runs/live{part}" for part in ("", "/pipeline", "/timeline", "/tables", "/settings")]
    for path in ("/", "/pipeline", "/comparisons/scan", *parts, "/runs/lost", f"/runs/{RUN}", f"/runs/{RUN}/files"):
        tab.goto(site.url + path)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        found = axe.run(tab).response["violations"]  # WCAG 2 and good practice, with the contrast of every text
        assert [(one["id"], one["impact"], [node["html"] for node in one["nodes"]]) for one in found] == [], path
    context.close()
