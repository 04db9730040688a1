"""Metrics over a whole model, one file each."""
