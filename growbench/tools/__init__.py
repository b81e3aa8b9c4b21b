"""What the commands do beside running and reporting."""
