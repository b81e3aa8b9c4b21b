"""What a run would take, without training."""
