"""Selects four-lepton events and computes their masses."""
