"""The scripts run with macOS's bash 3.2 and its BSD tools."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

#: What bash 3.2, or a tool of macOS, does not have.
TOO_NEW = {
    "associative array": r"\b(declare|local|typeset) -[a-zA-Z]*[An]",
    "change of case": r"\$\{\w+(\[[^]]*\])?(,|\^)",
    "transformation": r"\$\{[^}]*@[QEPAaUuLK]\}",
    "mapfile": r"\b(mapfile|readarray|coproc)\b",
    "test -v": r"\[\[? -v ",
    "redirection": r"&>>|\|&",
    "wait -n": r"\bwait -n\b",
    "GNU sed": r"\bsed (-i|-r|--)",
    "GNU mktemp": r"\bmktemp [^|;)]*--",
    "GNU readlink or date": r"\breadlink -f|\bdate (-d|--)|\brealpath\b",
    "GNU grep or head": r"\bgrep -P|\bhead -n -|\bxargs -r",
}


@pytest.mark.parametrize("script", sorted(ROOT.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_uses_nothing_that_bash_3_2_or_bsd_tools_lack(script: Path) -> None:
    lines = [line for line in script.read_text().splitlines() if not line.lstrip().startswith("#")]
    found = {what: [line for line in lines if re.search(pattern, line)] for what, pattern in TOO_NEW.items()}
    assert {what: where for what, where in found.items() if where} == {}
