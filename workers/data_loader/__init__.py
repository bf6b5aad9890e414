"""Read the files of a run in chunks and apply the pT cuts."""
