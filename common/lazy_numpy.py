"""numpy, imported when one of its functions is first used: ``from common import lazy_numpy as np``.

For modules that declare samples, columns and selections. A command that submits a run needs the declarations only,
and numpy takes 0.1 s of CPU to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        import numpy as np

        globals()[name] = value = getattr(np, name)  # found without this function from now on
        return value
