"""Select four-lepton events and calculate their masses."""
