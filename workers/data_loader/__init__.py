"""Opens files, splits them into chunks, reads the chunks and applies the pT cuts."""
