"""What each service of the pipeline spends: CPU and memory under Compose, on Kubernetes, or as plain processes.

cpu_monitor.py                                    a live table, like docker stats
cpu_monitor.py --once [--json]                    one look
cpu_monitor.py record --output FILE [-- COMMAND]  record, around a command where one is given
cpu_monitor.py compare FILE FILE [..]             compare recordings: a table, comparison.png, .pdf and .md
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from monitoring import run_results as runs
from monitoring import sources
from monitoring import tables as table
from monitoring.recorder import Plan, View, Watch
from monitoring.recording import Recording, read_recording
from monitoring.sources.base import MonitorError

OK, FAILED = 0, 1
#: The Compose project of compose.yaml, and the namespace of kubernetes/.
PROJECT, NAMESPACE = "atlas-open-data", "atlas"


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch, record or compare as the flags say; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["compare"]:
            return _compare(_compare_parser().parse_args(words[1:]))
        split = words.index("--") if "--" in words else len(words)
        flags = _watch_parser().parse_args(words[:split])
        return _watch(flags, words[split + 1 :])
    except MonitorError as error:
        print(f"cpu_monitor.py: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("cpu_monitor.py: interrupted", file=sys.stderr)
        return FAILED


def _watch_parser() -> argparse.ArgumentParser:
    what, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="cpu_monitor.py",
        description=what,
        epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("action", nargs="?", choices=["record"], help="record to a file; without it a live table")
    parser.add_argument("--source", choices=["auto", *sources.KINDS], default="auto", help="default: auto")
    parser.add_argument(
        "--project",
        default=os.environ.get("COMPOSE_PROJECT_NAME") or PROJECT,
        help=f"Compose project (COMPOSE_PROJECT_NAME, default: {PROJECT})",
    )
    parser.add_argument(
        "--namespace",
        default=os.environ.get("NAMESPACE") or NAMESPACE,
        help=f"Kubernetes namespace (NAMESPACE, default: {NAMESPACE})",
    )
    parser.add_argument("--services", type=_names, default=(), metavar="A,B,..", help="only these, and all of these")
    parser.add_argument("--interval", type=_positive, default=1.0, metavar="S", help="seconds (default: 1)")
    parser.add_argument("--duration", type=_positive, default=math.inf, metavar="S", help="end after so many seconds")
    parser.add_argument("--until-run", metavar="RUN_ID", help="end when the result of this run is there")
    parser.add_argument("--tail", type=_positive, default=0.0, metavar="S", help="go on so long after run or command")
    parser.add_argument("--wait", type=_positive, default=0.0, metavar="S", help="wait so long for services to appear")
    parser.add_argument(
        "--output", type=Path, action="append", default=[], metavar="FILE", help="record to FILE: .csv, or .jsonl"
    )
    parser.add_argument(
        "--results",
        default=os.environ.get("OUTPUT") or "results",
        metavar="DIR",
        help="where runs leave their results (OUTPUT, default: results)",
    )
    parser.add_argument("--label", help="what compare calls this recording (default: its platform)")
    parser.add_argument("--once", action="store_true", help="look once, after one interval")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cpu_monitor.py compare", allow_abbrev=False)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="recordings; equal labels are repetitions")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="for comparison.png, .pdf and .md")
    return parser


def _watch(flags: argparse.Namespace, command: Sequence[str]) -> int:
    if command and flags.action != "record":
        raise MonitorError("a command is recorded with: cpu_monitor.py record -- COMMAND")
    where = sources.Where(flags.project, flags.namespace, flags.interval, bool(command) or flags.wait > 0)
    console = Console(highlight=False)
    source = sources.open_source(flags.source, where, command)
    try:
        outputs = flags.output
        if flags.action == "record" and not outputs:
            outputs = [Path(f"cpu-{source.about()['platform']}-{time.strftime('%Y%m%d-%H%M%S')}.csv")]
        plan = Plan(
            interval_s=flags.interval,
            duration_s=flags.interval if flags.once else flags.duration,
            tail_s=flags.tail,
            wait_s=flags.wait or math.inf,
            until_run=flags.until_run,
            command=command,
            services=flags.services,
            outputs=outputs,
            label=flags.label,
            folders=runs.result_folders(command, flags.results),
        )
        view = _view(flags, command, console)
        watch = Watch(source, plan, view)
        with view if isinstance(view, table.LiveTable) else contextlib.nullcontext():
            recording = watch.run()
    finally:
        source.close()
    if not recording.samples:
        place = {
            "compose": f"in the Compose project {flags.project!r}",
            "kubernetes": f"in the namespace {flags.namespace!r}",
        }.get(str(recording.header["platform"]), "among this machine's processes")
        raise MonitorError(f"no service ever appeared {place}")
    _show(flags, recording, view, console)
    for problem in recording.header["problems"]:
        print(f"cpu_monitor.py: note: {problem}", file=sys.stderr)
    for path in outputs:
        print(f"cpu_monitor.py: recorded in {path}", file=sys.stderr)
    failures = [f"the service {service} never appeared" for service in watch.missing()]
    if flags.until_run and recording.header["run"] is None:
        failures.append(f"no result of the run {flags.until_run} appeared")
    for failure in failures:
        print(f"cpu_monitor.py: {failure}", file=sys.stderr)
    return watch.exit_code or (FAILED if failures else OK)


def _show(flags: argparse.Namespace, recording: Recording, view: View, console: Console) -> None:
    """What was seen with --once, else the summary."""
    if flags.once and isinstance(view, table.Now):
        services = view.services()
        if flags.json:
            print(json.dumps({"time": time.time(), "platform": recording.header["platform"], "services": services}))
        else:
            console.print(table.now_table(services, str(recording.header["platform"]), "counter_seconds"))
        return
    numbers = table.summary(recording)
    if flags.json:
        print(json.dumps({"summary": numbers}))
    else:
        console.print(table.summary_table(numbers))


def _view(flags: argparse.Namespace, command: Sequence[str], console: Console) -> View:
    if flags.once:
        return table.Now()
    if flags.json:
        return table.JsonLines() if not command else table.Now()
    if command or not console.is_terminal:
        return table.Now()
    return table.LiveTable(console, "CPU by service")


def _compare(flags: argparse.Namespace) -> int:
    from monitoring.comparison import compare as comparison
    from monitoring.comparison import plot as comparison_plot

    compared = comparison.compare([read_recording(path) for path in flags.files])
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(comparison.table(compared))
    for warning in compared.warnings:
        console.print(f"not comparable: {warning}", soft_wrap=True)
    try:
        flags.output.mkdir(parents=True, exist_ok=True)
        (flags.output / "comparison.md").write_text(comparison.markdown(compared), encoding="utf-8")
        comparison_plot.draw(compared, flags.output / "comparison")
    except OSError as error:
        raise MonitorError(f"--output {flags.output}: {error.strerror}") from None
    console.print(f"{flags.output / 'comparison'}.png, .pdf and .md", soft_wrap=True)
    return OK


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds; write for example 0.5")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    sys.exit(main())
