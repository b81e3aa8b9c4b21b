"""growbench: which way of growing transformers really saves training."""

__version__ = "0.1.0"
DEFAULT_EXPERIMENT = "gpt2-tiny"  # of commands
