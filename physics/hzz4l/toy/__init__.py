"""The toy release ``demo``: files of the layout of the real 2020 release, made from a seed."""
