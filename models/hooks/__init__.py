"""Sampler hooks, one file each; `models/sampling/sampler_hooks.py` says what one is."""
