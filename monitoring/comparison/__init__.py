"""Comparison of recordings: means with standard errors, ratios, a table, a plot and a Markdown page."""
