"""Draws the plots and writes the result folder."""
