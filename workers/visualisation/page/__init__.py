"""The web page: runs under way, and finished runs from the output folder."""
