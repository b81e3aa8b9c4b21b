"""From stored runs to verdicts."""
