"""The campaign: idle stacks and runs of two sizes on each platform in turn, recorded and compared."""
