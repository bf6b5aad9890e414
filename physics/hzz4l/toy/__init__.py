"""The toy releases ``demo`` and ``demo-2025``: files of the layout of the real releases, made from a seed."""
