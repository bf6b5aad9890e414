"""The likelihood of a workspace, its minima and its profiles."""
