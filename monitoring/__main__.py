"""The command ``cpu_monitor.py``: shows, records and compares the CPU time of the pipeline's services."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from monitoring import arguments, run_results, sources, tables
from monitoring.documents import publish
from monitoring.recorder import Recorder, RecordingOptions
from monitoring.recording import Recording, read_recording
from monitoring.sources.base import MonitorError, Source

if TYPE_CHECKING:
    from monitoring.comparison.compare import Comparison
    from monitoring.comparison.costs import Cost

OK, FAILED, INTERRUPTED = 0, 1, 130
#: The width of tables where that of the terminal is not known.
_WIDTH = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Show, record or compare as the flags say; returns the exit code."""
    flags, command = arguments.parse(list(sys.argv[1:] if argv is None else argv))
    try:
        if flags.action == "compare":
            return _compare(flags)
        if flags.action == "scan":
            return _scan(flags)
        return _campaign(flags) if flags.action == "campaign" else _record(flags, command)
    except MonitorError as error:
        _say(str(error))
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    return FAILED


def _say(line: str) -> None:
    print(f"cpu_monitor.py: {line}", file=sys.stderr)


def _console() -> Console:
    """Return the console of tables, which are not cut where the output is no terminal."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH)
    if not console.width:  # COLUMNS=0, with which rich prints nothing
        console.width = _WIDTH
    return console


def _record(flags: argparse.Namespace, command: Sequence[str]) -> int:
    """Show or record services; returns the command's exit code, or FAILED if something expected did not appear."""
    if command and flags.action != "record":
        raise MonitorError("to record a command, write: cpu_monitor.py record -- COMMAND")
    console = _console()
    options = sources.SourceOptions(flags.project, flags.namespace, flags.interval, bool(command) or flags.wait > 0)
    with contextlib.closing(sources.open_source(flags.source, options, command)) as source:
        display = _display(flags, command, console)
        recorder = Recorder(source, _options(flags, command, source), display.show)
        with display if isinstance(display, tables.LiveTable) else contextlib.nullcontext():
            recording = recorder.run()
    if not recording.samples:
        place = {
            "docker": f"in the Compose project {flags.project!r}",
            "kubernetes": f"in the namespace {flags.namespace!r}",
        }.get(str(recording.header["platform"]), "among this machine's processes")
        named = f"--services {','.join(flags.services)}: no such service" if flags.services else "no service"
        raise MonitorError(f"{named} appeared {place}")
    _print(flags, recording, display, console)
    for problem in recording.header["problems"]:
        _say(f"note: {problem}")
    for path in recorder.written:
        _say(f"recorded in {path}")
    missing = [f"the service {service} did not appear" for service in recorder.missing_services()]
    failures = [*recorder.not_written, *missing]
    if flags.until_run and recording.header["run"] is None:
        failures.append(f"no result of the run {flags.until_run} appeared")
    for failure in failures:
        _say(failure)
    return recorder.exit_code or (FAILED if failures else OK)


def _options(flags: argparse.Namespace, command: Sequence[str], source: Source) -> RecordingOptions:
    outputs = flags.output
    if flags.action == "record" and not outputs:
        outputs = [Path(f"cpu-{source.describe()['platform']}-{time.strftime('%Y%m%d-%H%M%S')}.csv")]
    return RecordingOptions(
        interval_s=flags.interval,
        duration_s=flags.interval if flags.once else flags.duration,
        tail_s=flags.tail,
        wait_s=flags.wait or math.inf,
        until_run=flags.until_run,
        command=command,
        services=flags.services,
        outputs=outputs,
        label=flags.label,
        result_folders=run_results.result_folders(command, flags.results),
    )


def _display(flags: argparse.Namespace, command: Sequence[str], console: Console) -> tables.CurrentUsage:
    """Return the display of samples as they arrive. A command keeps the terminal to itself."""
    if command or flags.once:
        return tables.CurrentUsage()
    if flags.json:
        return tables.JsonLines()
    return tables.LiveTable(console, "CPU by service") if console.is_terminal else tables.CurrentUsage()


def _print(flags: argparse.Namespace, recording: Recording, display: tables.CurrentUsage, console: Console) -> None:
    """Print current values with --once, else the summary of the recording."""
    if flags.once:
        services, platform = display.services(), str(recording.header["platform"])
        if flags.json:
            print(json.dumps({"time": time.time(), "platform": platform, "services": services}))
        else:
            console.print(tables.current_table(services, platform, "counter_seconds"))
        return
    summary = tables.summarize(recording)
    if flags.json:
        print(json.dumps({"summary": summary}))
    else:
        console.print(tables.summary_table(summary))


def _compare(flags: argparse.Namespace) -> int:
    from monitoring.comparison.compare import compare

    recordings = [read_recording(path) for path in flags.files]
    if len(recordings) < 2:
        raise MonitorError("a comparison needs two recordings or more; give for example docker.csv kubernetes.csv")
    _publish_comparison(compare(recordings), flags.output)
    return OK


def _publish_comparison(
    comparison: Comparison, path: Path, costs: Sequence[Cost] = (), made: Mapping[str, Any] | None = None
) -> None:
    from monitoring.comparison.report import document

    def draw(path: Path) -> None:
        from monitoring.comparison.plot import draw

        draw(comparison, path, costs)

    publish(document(comparison, costs, made), path, draw, _console())


def _campaign(flags: argparse.Namespace) -> int:
    """Record a campaign and compare its recordings; FAILED if a part of it is missing."""
    from monitoring.campaign.campaign import Campaign, Plan
    from monitoring.comparison.compare import compare
    from monitoring.comparison.costs import costs

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan = Plan(tuple(flags.platforms), tuple(flags.events), flags.repeat, flags.idle)
    campaign = Campaign(plan, flags.output.resolve(), _say)
    try:
        campaign.record()
    except KeyboardInterrupt:
        _say("interrupted; the same command continues where it stopped")
        return INTERRUPTED
    repetitions = campaign.repetitions()
    for failure in campaign.failures:
        _say(failure)
    if not repetitions:
        raise MonitorError(f"no repetition is complete; the logs are in {campaign.folder / 'logs'}")
    runs = [one.large for members in repetitions.values() for one in members]
    _publish_comparison(compare(runs), campaign.folder / "comparison", costs(repetitions), campaign.made_with())
    return FAILED if campaign.failures else OK


def _scan(flags: argparse.Namespace) -> int:
    """Record runs with different numbers of replicas, and show speed-up, Amdahl's law and the limit."""
    from monitoring.scaling.scan import Scan, ScanPlan
    from monitoring.scaling.speedup import points

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    service, numbers = flags.service
    folder = flags.output or Path(
        os.environ.get("OUTPUT") or "results", "comparisons", f"scan-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    plan = ScanPlan(flags.platform, service, numbers, flags.events, flags.repeat)
    scan = Scan(plan, arguments.place(flags.platform), folder.resolve(), _say)
    scan.record()
    measured = points(scan.runs())

    from monitoring.scaling.report import document

    def draw(path: Path) -> None:
        from monitoring.scaling.report import draw

        draw(plan, measured, path)

    publish(document(plan, measured, scan.made_with()), scan.folder / "comparison", draw, _console())
    return OK


if __name__ == "__main__":
    sys.exit(main())
