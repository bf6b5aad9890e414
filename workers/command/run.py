"""``analysis.py [run]``: run an analysis within this process, or submit it to a broker and follow it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from common import interrupts, settings, version
from common.arguments import Parser
from common.display import Bars, output_console, print_problem
from common.errors import SettingsError
from common.interrupts import program
from common.logs import configure_logging
from common.result_folder import check_output, write_folder, write_folder_or_temporary
from common.settings import VARIABLES, Settings

if TYPE_CHECKING:
    from common.analyses import Analyses
    from common.submission import Outcome
    from common.transport import Session

# Functions import what takes long (pika, the services), so that --help and wrong flags are answered at once.

DESCRIPTION = """\
Run an analysis of ATLAS Open Data.

Without --broker the four services run inside this one command. With it the run
is submitted to that RabbitMQ, where the services wait, and followed here."""
COMPLETE, INCOMPLETE = 0, 1
#: How many problems are printed; result.json has all of them.
SHOWN_PROBLEMS = 4
#: A run keeps two cores busy until its picture is drawn: one reads and selects, one prepares to draw. On another core,
#: the process that fits is started ahead.
BUSY_CORES = 2
#: How long Ctrl-C may take to end the page, in seconds.
_CHECK_EVERY_S = 0.2


def run(arguments: Sequence[str], console: Console) -> int:
    """Run one analysis with the settings of the flags and the environment; returns the exit code."""
    flags = _parser().parse(arguments)
    if flags.version:
        print(version.text(os.environ))
        return COMPLETE
    if flags.json or flags.quiet:
        console = output_console(stderr=flags.json, quiet=flags.quiet)
    try:
        return _run(flags, console)
    except SettingsError as error:
        raise SettingsError(_as_typed(str(error), flags)) from None


def _parser() -> Parser:
    parser = Parser(description=DESCRIPTION)
    for variable in VARIABLES:
        if variable.flag is not None:
            if variable.metavar is None:
                shown = f"{variable.what.removeprefix('0: ')} ({variable.name}=0)"
                parser.add_argument(variable.flag, dest=variable.name, action="store_const", const="0", help=shown)
            else:
                default = f", default: {variable.default}" if variable.default else ""
                shown = f"{variable.what} ({variable.name}{default})"
                parser.add_argument(variable.flag, dest=variable.name, metavar=variable.metavar, help=shown)
    parser.add_argument("--broker", metavar="amqp://..", help="submit the run to this RabbitMQ and follow it")
    parser.add_argument(
        "--processes",
        metavar="N",
        type=_number_of_processes,
        help="worker processes of a run without --broker; 0: threads only (default: one a core, if memory allows)",
    )
    parser.add_argument("--page", action="store_true", help="serve the web page, also after the run, until Ctrl-C")
    parser.add_argument("--dry-run", action="store_true", help="list the files that would be read, and end")
    parser.add_argument("--quiet", action="store_true", help="print the result folder and problems only")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print result.json and its folder; all else goes to standard error",
    )
    parser.add_argument("--version", action="store_true", help="print the version and the commit")
    parser.epilog = (
        f"{program()} runs, follow, cancel --help: the runs of a broker; "
        f"{program()} dead-letters --help: list and requeue the messages that could not be handled; "
        f"{program()} check --help: check the file of an own analysis; "
        f"{program()} compare --help: compare results"
    )
    return parser


def _number_of_processes(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes; write for example --processes 4")
    return int(text)


def _as_typed(message: str, flags: argparse.Namespace) -> str:
    """Return the message of an error with the flags and the data directory as the user has typed them."""
    if (data := flags.DATA or os.environ.get("DATA")) and not settings.is_url(data):
        message = message.replace(repr(os.path.realpath(os.path.expanduser(data))), repr(data))
    return settings.as_typed(message, vars(flags))


def _run(flags: argparse.Namespace, console: Console) -> int:
    read = settings.read(os.environ, vars(flags))
    analyses = _analyses(read)
    read = replace(read, run=analyses.resolve(read.run))
    configure_logging(read.log_level if "LOG_LEVEL" in os.environ else "WARNING")
    if flags.broker:
        if flags.page:
            raise SettingsError("--page: the visualisation service of the broker serves the page; leave --broker out")
        for flag, given in (("--processes", flags.processes is not None), ("--dry-run", flags.dry_run)):
            if given:
                raise SettingsError(f"{flag} is for a run within this command; leave --broker out")
        return _distributed(read, flags, console)
    from workers.data_loader.sources import check_directory

    check_directory(analyses.of(read.run), read.run)
    if flags.dry_run:
        from workers.command.dry_run import show

        return show(analyses.of(read.run), read, console, as_json=flags.json)
    return _embedded(read, flags, console)


def _analyses(read: Settings) -> Analyses:
    from physics import ANALYSES

    return ANALYSES.in_folder(read.analyses)


def _distributed(read: Settings, flags: argparse.Namespace, console: Console) -> int:
    from common.submission import BROKER_CONNECT_TIMEOUT_S, new_run_id, open_and_submit
    from common.transport.rabbitmq import RabbitMQTransport
    from workers.command.leave import leave

    run_id = new_run_id(read.run.release)
    broker = read.broker.with_url(flags.broker)
    folder = Folder(read.output, run_id, console)
    with interrupts.noted(signal.SIGINT, signal.SIGTERM) as interrupted:
        transport = RabbitMQTransport(broker, BROKER_CONNECT_TIMEOUT_S, interrupted)
        check_output(read.output)
        with closing(open_and_submit(transport, run_id, read.run)) as session:
            console.print(f"run {run_id}")
            outcome = _follow(session, read, folder, console, lambda: not interrupted.is_set())
        if interrupted.is_set():
            leave(broker, run_id, read.run.digest, interrupted)
        return folder.write(outcome, as_json=flags.json)


def _embedded(read: Settings, flags: argparse.Namespace, console: Console) -> int:
    from common.submission import new_run_id, open_and_submit
    from common.worker_pool import available_cores
    from workers.analysis.statistics.fit_pool import FitPool
    from workers.data_loader.inputs import check_network
    from workers.visualisation.plots.pool import DrawingPool

    check_network(_analyses(read).of(read.run), read.run, read.cache)
    with interrupts.noted(signal.SIGINT, signal.SIGTERM):
        check_output(read.output)
    run_id = new_run_id(read.run.release)
    folder = Folder(read.output, run_id, console)
    with (
        interrupts.noted(signal.SIGINT, signal.SIGTERM) as interrupted,
        closing(FitPool(ahead=available_cores() > BUSY_CORES)) as fits,
        closing(DrawingPool(analyses=read.analyses)) as drawing,
    ):
        console.print(f"run {run_id}")
        # The worker processes import what they need while this process imports the services.
        if read.run.plots:
            drawing.start()
        fits.start()
        from workers.embedded import EmbeddedServices

        with EmbeddedServices(
            read, processes=flags.processes, with_page=flags.page, fits=fits, drawing=drawing
        ) as services:
            if flags.page:
                console.print(f"page {services.page_url}", soft_wrap=True)
            with closing(open_and_submit(services.transport, run_id, read.run)) as session:
                outcome = _follow(
                    session, read, folder, console, lambda: services.is_alive() and not interrupted.is_set()
                )
            if interrupted.is_set():
                logging.disable()  # the services report what they cannot finish
                raise KeyboardInterrupt
            code = folder.write(outcome, as_json=flags.json)
            if flags.page:
                console.print(f"the page is at {services.page_url} until Ctrl-C", soft_wrap=True)
                with suppress(KeyboardInterrupt), interrupts.noted(signal.SIGINT, signal.SIGTERM) as ended:
                    while not ended.is_set():
                        time.sleep(_CHECK_EVERY_S)
        return code


def _follow(
    session: Session, read: Settings, folder: Folder, console: Console, is_alive: Callable[[], bool]
) -> Outcome:
    from common.submission import follow

    analyses = _analyses(read)
    files = "demo files ready" if analyses.of(read.run).toy else "files opened"
    with Bars(console, len(read.run.samples), analyses, files=files) as bars:
        return follow(
            session, folder.run_id, analyses, bars, is_alive, settings=read.run, first_files=folder.write_first
        )


class Folder:
    """The result folder of a run that is followed: written with the first figure, and again with all of them."""

    def __init__(self, output: Path, run_id: str, console: Console) -> None:
        self.run_id = run_id
        self._output, self._console = output, console
        self._has_picture = False

    def write_first(self, files: Mapping[str, bytes]) -> None:
        """Write the folder with its first figure, and print where that is; an error is left to ``write``."""
        with suppress(OSError):
            self._print_picture(write_folder(files, self._output, self.run_id), files)

    def write(self, outcome: Outcome, *, as_json: bool = False) -> int:
        """Write the folder of a run that has ended, and print how it ended; returns the exit code.

        Standard output has the document of the result if ``as_json``, and the folder alone if the console is quiet.
        """
        if outcome.problem is not None:
            print_problem(f"run {self.run_id} failed: {outcome.problem}")
            return INCOMPLETE
        folder, not_written = write_folder_or_temporary(outcome.files, self._output, self.run_id)
        document = outcome.result or {}
        if as_json:
            print(json.dumps({"folder": str(folder), **document}))
        elif self._console.quiet:
            print(folder)
        self._console.print(f"results in {folder}/", soft_wrap=True)
        if not self._has_picture or not_written:
            self._print_picture(folder, outcome.files)
        problems: Sequence[str] = document.get("problems", ())
        if not_written:
            print_problem(f"{not_written}; the results are in {folder}/; move them from there")
        if not problems:
            return INCOMPLETE if not_written else COMPLETE
        for problem in problems[1:SHOWN_PROBLEMS]:
            print_problem(problem)
        if len(problems) > SHOWN_PROBLEMS:
            print_problem(f"and {len(problems) - SHOWN_PROBLEMS} more problems, in result.json")
        state = "is complete, but" if document["complete"] else "is not complete:"
        print_problem(f"run {self.run_id} {state} {problems[0]}")
        return INCOMPLETE

    def _print_picture(self, folder: Path, files: Mapping[str, bytes]) -> None:
        histograms = json.loads(files["result.json"])["histograms"]  # in the order of drawing
        picture = next((name for name in (f"{histogram}.png" for histogram in histograms) if name in files), None)
        if picture is not None:
            self._console.print(f"picture to open: {folder / picture}", soft_wrap=True)
            self._has_picture = True
