"""What tells an error of too little memory from others."""

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU, or this machine, had too little memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
