"""One file per method. The method has the file's name."""
