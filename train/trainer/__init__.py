"""The training loop and what runs it: engines, checkpoints, options, torchrun."""
