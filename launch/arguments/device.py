"""Which device a command computes on."""

from efface.errors import UserError


def resolve_device(name: str) -> str:
    """`auto` is the first GPU, or the CPU; else the device named. Raises UserError where it is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device '{name}' is no device, say cpu, cuda, cuda:1 or auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device '{name}' is not there, this machine has {torch.cuda.device_count()} CUDA devices")
    return name
