"""The page shows what the CPU monitor has written to OUTPUT/comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring.documents import Document, TextTable
from tests.unit.test_page import Site

PNG = b"\x89PNG\r\n\x1a\n"


def write_comparison(output: Path, name: str) -> Path:
    """Write a comparison as the monitor does, with a picture that is none."""
    folder = output / "comparisons" / name
    folder.mkdir(parents=True)
    table = TextTable(("replicas", "speed-up"), [("1", "1.00"), ("2", "1.82 ± 0.03")], 1, "Speed-up", "measured twice")
    made = {"command": "cpu_monitor.py scan", "commit": None}
    document = Document("Scaling of <b>x</b>", "docker, 2 × 1,000 events", [table], ["the limit is x"], made, ["r1"])
    (folder / "comparison.png").write_bytes(PNG)
    (folder / "comparison.json").write_text(document.json())
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "results")
    yield made
    made.service.close()


def test_a_comparison_is_listed_and_has_picture_table_and_how_it_was_made(site: Site) -> None:
    assert "Comparisons" not in site.text("/")
    write_comparison(site.output, "scan-1")
    assert '<a href="/comparisons/scan-1">Scaling of &lt;b&gt;x&lt;/b&gt;</a> docker, 2 × 1,000 events' in site.text(
        "/"
    )
    page = site.text("/comparisons/scan-1")
    for shown in ('<td class="n">1.82 ± 0.03</td>', "measured twice", "the limit is x", "cpu_monitor.py scan", "r1"):
        assert shown in page
    assert '<img src="/comparisons/scan-1/comparison.png?' in page
    assert site.get("/comparisons/scan-1/comparison.png").content == PNG
    assert "content-security-policy" in site.get("/comparisons/scan-1").headers


def test_a_comparison_that_is_written_into_an_older_folder_appears(site: Site) -> None:
    folder = write_comparison(site.output, "one")
    text = (folder / "comparison.json").read_text()
    (folder / "comparison.json").unlink()
    assert site.get("/comparisons/one").status_code == 404
    (folder / "comparison.json").write_text(text)
    assert "Scaling of" in site.text("/comparisons/one")
    (folder / "comparison.json").write_text('{"title": 3}')
    assert "its comparison.json is not valid" in site.text("/comparisons/one")
