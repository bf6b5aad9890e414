"""The figures of a result, and the processes that draw them."""
