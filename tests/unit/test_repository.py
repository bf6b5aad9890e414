"""What is tracked: no large binaries, no references to documents that are not in the repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MAX_BINARY_BYTES = 1_000_000
TEXT = {".py", ".sh", ".md", ".yaml", ".yml", ".toml", ".txt", ".conf", ".env", ".html", ".css", ".js", ".cff", ""}
DOCUMENT = re.compile(r"(?<![\w./~<{*-])([\w./-]*\w\.md)\b")
LINK = re.compile(r"\]\((?!https?:|#)([^)\s#]+)")
#: Written by cpu_monitor compare, next to its plots.
OUTPUTS = {"comparison.md"}


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_tracked_binary_is_larger_than_one_megabyte() -> None:
    large = [path for path in tracked() if path.suffix not in TEXT and path.stat().st_size > MAX_BINARY_BYTES]
    assert large == []


def test_every_cited_document_is_in_the_repository() -> None:
    files = tracked()
    documents = {path.name for path in files if path.suffix == ".md"} | OUTPUTS
    missing = {
        f"{path.relative_to(ROOT)}: {cited}"
        for path in files
        if path.suffix in TEXT
        for cited in DOCUMENT.findall(path.read_text(encoding="utf-8"))
        if Path(cited).name not in documents
    }
    assert missing == set()


def test_every_link_between_documents_leads_to_a_file() -> None:
    missing = {
        f"{path.relative_to(ROOT)}: {target}"
        for path in tracked()
        if path.suffix == ".md"
        for target in LINK.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    }
    assert missing == set()
