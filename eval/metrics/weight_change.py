"""How far a delta moves the weights: the challenge's tie-breaker, and norms that need no scale to be read.

    challenge = mean over models of ||theta_orig - theta_unlearned||_2 / number of parameters      (Genmu)

once over UNet, text encoder and VAE together ("all"), once over the UNet alone ("unet"). For single-concept
models the mean over models is the challenge's mean over target concepts. Adapters are merged before they are
measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from efface.eval.metric import METRICS
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.parameter_groups import group_names, select

Change = dict[str, float]


def weight_change(base: Base, delta: Delta) -> dict[str, Any]:
    """{"all": C, "unet": C, "groups": {parameter group: C}} with C the numbers of `measure`.

    Groups are those of `models.groups` that hold a changed tensor; they overlap. Raises UserError where the
    delta does not fit the base.
    """
    originals = base.originals()
    edited = delta.edited(base)
    unet = {name: tensor for name, tensor in originals.items() if name.startswith("unet.")}
    groups = {group: {name: originals[name] for name in select(base, group)} for group in group_names()}
    return {
        "all": measure(originals, edited),
        "unet": measure(unet, edited),
        "groups": {
            group: change
            for group, tensors in groups.items()
            if edited.keys() & tensors.keys() and (change := measure(tensors, edited))["changed_tensors"]
        },
    }


@METRICS.register("weight-change")
def flat_weight_change(base: Base, delta: Delta) -> dict[str, float]:
    """The numbers of `weight_change` over all parts and over the UNet alone, as a metric: `all.global_l2`, …"""
    change = weight_change(base, delta)
    return {f"{part}.{name}": number for part in ("all", "unet") for name, number in change[part].items()}


def measure(originals: Mapping[str, Tensor], edited: Mapping[str, Tensor]) -> Change:
    """Norms over `originals` of the difference to `edited`, which holds the new values of some of them; in
    fp64.

    challenge: global_l2 / parameters; global_l2: Euclidean norm of all differences together; relative_l2:
    that over the norm of the originals; global_l1: sum of absolute differences; changed_tensors: tensors
    with any difference; parameters: numbers in `originals`.
    """
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
    return {
        "challenge": squares**0.5 / parameters,
        "global_l2": squares**0.5,
        "relative_l2": (squares / norm) ** 0.5 if norm else 0.0,
        "global_l1": absolute,
        "changed_tensors": changed,
        "parameters": parameters,
    }


def mean_weight_change(changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number over several models (at least one); a group one of them leaves alone counts
    as 0.
    """
    groups = sorted({group for change in changes for group in change["groups"]})
    return {
        "all": _mean([change["all"] for change in changes]),
        "unet": _mean([change["unet"] for change in changes]),
        "groups": {group: _mean([change["groups"].get(group, {}) for change in changes]) for group in groups},
    }


def _mean(changes: Sequence[Change]) -> Change:
    names = next(change for change in changes if change)
    parameters = names["parameters"]
    mean = {name: sum(change.get(name, 0.0) for change in changes) / len(changes) for name in names}
    return mean | {"parameters": parameters}
