"""The web page: runs under way as they go on, finished runs as they are in the output folder."""
