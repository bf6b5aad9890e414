"""H→ZZ*→4ℓ: one module for each release."""
