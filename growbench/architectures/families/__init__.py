"""One file a family of models, holding one `ARCHITECTURE`; the file's name is the architecture's."""
