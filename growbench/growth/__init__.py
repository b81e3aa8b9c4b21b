"""Canonical weights and the maps that grow them."""
