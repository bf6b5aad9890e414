"""The command line of the CPU monitor."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from monitoring.sources import SOURCES

#: The range of an interval or a duration.
MIN_SECONDS, MAX_SECONDS = 0.001, 366 * 86_400
#: The Compose project of compose.yaml and the namespace of kubernetes/.
PROJECT, NAMESPACE = "atlas-open-data", "atlas"
#: The words of the command; all except ``record`` come before any flag.
WORDS = ("record", "compare", "campaign", "scan")
CAMPAIGN_PLATFORMS = ("process", "docker", "kubernetes")
#: The services that may have several replicas.
SCALED_SERVICES = ("data-loader", "data-processor")

_DESCRIPTION = "CPU time and memory of each service, under Docker Compose, on Kubernetes or as plain processes."
_EXAMPLES = """
cpu_monitor.py                                    live table, like docker stats
cpu_monitor.py --once [--json]                    current values, after one interval
cpu_monitor.py record --output FILE [-- COMMAND]  record; with a command, for as long as it runs
cpu_monitor.py compare FILE FILE [..]             compare recordings: table, comparison.png, .pdf, .md and .json
cpu_monitor.py campaign --output DIR              record and compare runs on every platform in turn
cpu_monitor.py scan data-processor=1,2,4          record runs with these numbers of replicas: speed-up and its limit
"""


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Sequence[str]]:
    """Return the flags and the command after ``--``.

    ``action`` is None, ``record``, ``compare``, ``campaign`` or ``scan``.
    """
    if argv[:1] == ["campaign"]:
        return _campaign_flags(argv[1:]), ()
    if argv[:1] == ["scan"]:
        return _scan_parser().parse_args(argv[1:], argparse.Namespace(action="scan")), ()
    if argv[:1] == ["compare"]:
        return _compare_parser().parse_args(argv[1:], argparse.Namespace(action="compare")), ()
    separator = list(argv).index("--") if "--" in argv else len(argv)
    parser = _record_parser()
    flags = parser.parse_args(argv[:separator])
    if flags.source == "auto" and flags.project and flags.namespace:
        parser.error("--project is for Docker Compose, --namespace for Kubernetes: give one of them, or --source")
    if flags.source == "auto":
        flags.source = "docker" if flags.project else "kubernetes" if flags.namespace else "auto"
    flags.project = flags.project or place("docker")
    flags.namespace = flags.namespace or place("kubernetes")
    return flags, argv[separator + 1 :]


def place(source: str) -> str:
    """Return the Compose project or the namespace that the environment names, or the default one."""
    variable, default = ("NAMESPACE", NAMESPACE) if source == "kubernetes" else ("COMPOSE_PROJECT_NAME", PROJECT)
    return os.environ.get(variable) or default


def _record_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cpu_monitor.py",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    words = "record, compare, campaign or scan; default: show a live table"
    add("action", nargs="?", type=_record_word, metavar="WORD", help=words)
    add("--source", choices=["auto", *SOURCES], default="auto", help="default: auto")
    add("--project", help=f"Compose project; implies --source docker (COMPOSE_PROJECT_NAME, default: {PROJECT})")
    add("--namespace", help=f"Kubernetes namespace; implies --source kubernetes (NAMESPACE, default: {NAMESPACE})")
    add("--services", type=_names, default=(), metavar="A,B,..", help="only these services; all of them must appear")
    add("--interval", type=_seconds, default=1.0, metavar="S", help="seconds between samples (default: 1)")
    add("--duration", type=_seconds, default=math.inf, metavar="S", help="stop after this many seconds")
    add("--until-run", metavar="RUN_ID", help="stop when this run has finished")
    add("--tail", type=_seconds, default=0.0, metavar="S", help="continue for S seconds after the run or command")
    add("--wait", type=_seconds, default=0.0, metavar="S", help="wait up to S seconds for services to start")
    add(
        "--output",
        type=_recording,
        action="append",
        default=[],
        metavar="FILE",
        help="record to FILE: .csv or .jsonl, or a pipe",
    )
    add(
        "--results",
        default=os.environ.get("OUTPUT") or "results",
        metavar="DIR",
        help="folder of the runs' results (OUTPUT, default: results)",
    )
    add("--label", help="name of this recording in compare (default: its platform)")
    add("--once", action="store_true", help="show current values after one interval or more, and exit")
    add("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cpu_monitor.py compare", allow_abbrev=False)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="recordings; those with equal labels are repetitions"
    )
    parser.add_argument(
        "--output",
        type=_comparison,
        default=Path("comparison"),
        metavar="DIR|FILE",
        help="folder for comparison.png, .pdf, .md and .json, or one of these files (default: the current folder)",
    )
    return parser


def _campaign_flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cpu_monitor.py campaign",
        allow_abbrev=False,
        description="Record the idle services and runs of two sizes on each platform in turn, and compare them. "
        "After an interruption, the same command continues.",
    )
    add = parser.add_argument
    add("--platforms", type=_names, default=CAMPAIGN_PLATFORMS, metavar="A,B,..", help="default: all three")
    add("--events", type=_count, nargs=2, default=(2_000_000, 20_000_000), metavar="N", help="events of the runs")
    add("--repeat", type=_count, default=3, metavar="N", help="recordings of each kind (default: 3)")
    add("--idle", type=_seconds, default=60.0, metavar="S", help="seconds of the idle services, over all repetitions")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the recordings and the comparison")
    flags = parser.parse_args(argv, argparse.Namespace(action="campaign"))
    if unknown := set(flags.platforms) - set(CAMPAIGN_PLATFORMS):
        parser.error(f"--platforms: {', '.join(sorted(unknown))} is none of {', '.join(CAMPAIGN_PLATFORMS)}")
    if flags.events[0] >= flags.events[1]:
        parser.error(f"--events {flags.events[0]} {flags.events[1]}: give the smaller number first")
    return flags


def _scan_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cpu_monitor.py scan",
        allow_abbrev=False,
        description="Record the same run with different numbers of replicas of a service. The services are those of "
        "docker-run.sh or kubernetes-run.sh, and are started if they do not run.",
    )
    add = parser.add_argument
    add("service", type=_scan, metavar="SERVICE=N,N,..", help="data-loader or data-processor, and the numbers")
    add("--platform", choices=CAMPAIGN_PLATFORMS[1:], default="docker", help="default: docker")
    add("--events", type=_count, default=5_000_000, metavar="N", help="simulated events of a run (default: 5000000)")
    add("--repeat", type=_count, default=3, metavar="N", help="runs with each number (default: 3)")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the scan, also of one to continue (default: a new one in OUTPUT/comparisons)",
    )
    return parser


def _record_word(text: str) -> str:
    """Return ``record``, the only word that this parser gets; the others have parsers of their own."""
    if text not in WORDS:
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such word; choose one of {', '.join(WORDS)}")
    if text != "record":
        raise argparse.ArgumentTypeError(f"{text} comes first; write: cpu_monitor.py {text} ..")
    return text


def _scan(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the service and the numbers of replicas, without repetitions and in order."""
    service, _, numbers = text.partition("=")
    found = {int(number) if number.isdigit() else 0 for number in numbers.split(",")}
    if service not in SCALED_SERVICES or 0 in found or len(found) < 2:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write {' or '.join(SCALED_SERVICES)}=N,N,.., with two or more different numbers from 1"
        )
    return service, tuple(sorted(found))


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _comparison(text: str) -> Path:
    """Return the path of a comparison's files without suffix."""
    path = Path(text)
    return path.with_suffix("") if path.suffix in (".png", ".pdf", ".md", ".json") else path / "comparison"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not MIN_SECONDS <= value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from {MIN_SECONDS:g} to {MAX_SECONDS:,}; write for example 0.5"
        )
    return value


def _recording(text: str) -> Path:
    """Return the path of a recording; an existing pipe or device may have any name."""
    path = Path(text)
    if path.suffix not in (".csv", ".jsonl") and (not path.exists() or path.is_file() or path.is_dir()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither .csv nor .jsonl; write for example run.csv")
    return path


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
