"""Data: documents -> tokens (memory-mapped, cached) -> fixed-length batches that depend on nothing but seed and step."""

from growbench.data.text import Batch, TextData, load, scored_per_row

__all__ = ["Batch", "TextData", "load", "scored_per_row"]
