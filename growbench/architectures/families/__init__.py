"""One file per family of models. It holds one `ARCHITECTURE`, whose name is the file's."""
