"""How far a delta moves the weights: the challenge's tie-breaker, and norms that need no scale to be read.

    challenge = mean over models of ||theta_orig - theta_unlearned||_2 / number of parameters      (Genmu)

once over UNet, text encoder and VAE together ("all"), once over the UNet alone ("unet"). For single-concept
models the mean over models is the challenge's mean over target concepts. Adapters are merged before they are
measured.
"""

from collections.abc import Mapping

from torch import Tensor

from efface.eval.metric import METRICS
from efface.eval.weight_change_values import LayerChange, Norms, WeightChange, layer_of
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.parameter_groups import group_names, select


def weight_change(base: Base, delta: Delta) -> WeightChange:
    """The norms of a delta's differences to its base. Raises UserError where it does not fit the base."""
    originals = base.originals()
    edited = delta.edited(base)
    unet = {name: tensor for name, tensor in originals.items() if name.startswith("unet.")}
    groups = {group: {name: originals[name] for name in select(base, group)} for group in group_names()}
    return WeightChange(
        all=measure(originals, edited),
        unet=measure(unet, edited),
        groups={
            group: norms
            for group, tensors in groups.items()
            if edited.keys() & tensors.keys() and (norms := measure(tensors, edited)).changed_tensors
        },
        layers=_layers(originals, edited),
    )


def _layers(originals: Mapping[str, Tensor], edited: Mapping[str, Tensor]) -> dict[str, LayerChange]:
    """Of each layer with a changed tensor, in the order of the originals."""
    touched = {layer_of(name) for name in edited}
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in originals.items():
        if layer_of(name) in touched:
            by_layer.setdefault(layer_of(name), {})[name] = tensor
    found = {layer: measure(tensors, edited) for layer, tensors in by_layer.items()}
    return {
        layer: LayerChange(norms.global_l2, norms.relative_l2)
        for layer, norms in found.items()
        if norms.changed_tensors
    }


@METRICS.register("weight-change")
def flat_weight_change(base: Base, delta: Delta) -> dict[str, float]:
    """The numbers of `weight_change` over all parts and over the UNet alone, as a metric: `all.global_l2`, …"""
    change = weight_change(base, delta)
    parts = {"all": change.all, "unet": change.unet}
    return {f"{part}.{name}": number for part, norms in parts.items() for name, number in vars(norms).items()}


def measure(originals: Mapping[str, Tensor], edited: Mapping[str, Tensor]) -> Norms:
    """Norms over `originals` of the difference to `edited`, which holds the new values of some of them; in fp64."""
    squares = absolute = norm = 0.0
    changed = parameters = 0
    for name, original in originals.items():
        parameters += original.numel()
        before = original.double()
        norm += float(before.square().sum())
        if name in edited:
            difference = edited[name].to(before.device).double() - before
            squares += float(difference.square().sum())
            absolute += float(difference.abs().sum())
            changed += bool(difference.any())
    return Norms(
        challenge=squares**0.5 / parameters,
        global_l2=squares**0.5,
        relative_l2=(squares / norm) ** 0.5 if norm else 0.0,
        global_l1=absolute,
        changed_tensors=changed,
        parameters=parameters,
    )
