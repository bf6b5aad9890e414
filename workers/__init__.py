"""The four services, one folder each, and the client that Python programs import."""
