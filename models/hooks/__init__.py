"""Sampler hooks, one file each; `models/sampler_hooks.py` says what one is."""
