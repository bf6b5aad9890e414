"""The arguments of the command's words, with errors that name the argument and what to write instead."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from common.errors import SettingsError
from common.interrupts import program
from common.names import choices


class Parser(argparse.ArgumentParser):
    """The parser of one word. It raises SettingsError for wrong arguments."""

    def __init__(self, word: str = "", **options: Any) -> None:
        self._flags: list[str] = []
        super().__init__(prog=f"{program()} {word}".rstrip(), allow_abbrev=False, **options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Add an argument as ArgumentParser does."""
        self._flags += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **options)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments after the word; prints the help and exits if they ask for it."""
        found, unknown = self.parse_known_args(arguments)
        if not unknown:
            return found
        first = unknown[0].partition("=")[0]
        if not first.startswith("-"):
            raise SettingsError(f"{first!r} is not expected here; {self.prog} --help lists the arguments")
        raise SettingsError(f"{first}: there is no such flag; {choices(first, self._flags)}")

    def error(self, message: str) -> NoReturn:
        """Raise SettingsError."""
        raise SettingsError(f"{message.removeprefix('argument ')}; {self.prog} --help lists the arguments")
