"""A metric: which share of the UNet's tensors a method has changed."""

from efface.eval.metric import METRICS
from efface.models.base import Base
from efface.models.delta import Delta


@METRICS.register("changed-share")
def changed_share(base: Base, delta: Delta) -> dict[str, float]:
    """`share`, in [0, 1]."""
    unet = {name: tensor for name, tensor in base.originals().items() if name.startswith("unet.")}
    edited = delta.edited(base)
    changed = [name for name in unet if name in edited and not edited[name].equal(unet[name])]
    return {"share": len(changed) / len(unet)}
