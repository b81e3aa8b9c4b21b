"""growbench: which way of growing transformers really saves training."""

__version__ = "0.1.0"
