"""What a run would cost, without training."""
