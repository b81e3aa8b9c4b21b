"""The benchmark: which runs there are, how each is carried out, where it is stored."""
