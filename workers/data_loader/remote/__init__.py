"""Downloads the files of a release into a local cache."""
