"""What training costs: accounts, FLOPs, seconds, memory."""
