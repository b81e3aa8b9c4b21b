"""Experiments: what they hold, and how they are read from files."""
