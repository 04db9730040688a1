"""How far weights moved, as values: of one model, and their mean over several."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Norms:
    """Of the difference of some tensors to their originals."""

    challenge: float
    """`global_l2` / `parameters`."""
    global_l2: float
    """Euclidean norm of all differences together."""
    relative_l2: float
    """That over the norm of the originals."""
    global_l1: float
    """Sum of absolute differences."""
    changed_tensors: float
    """With any difference; of several models the mean."""
    parameters: int
    """Numbers in the originals."""


@dataclass(frozen=True)
class LayerChange:
    """Of the tensors of one layer."""

    global_l2: float
    relative_l2: float


@dataclass(frozen=True)
class WeightChange:
    """Over all parts together, over the UNet alone, and over each parameter group and layer with a changed tensor."""

    all: Norms
    unet: Norms
    groups: dict[str, Norms]
    """By group of `models.parameter_groups`; they overlap."""
    layers: dict[str, LayerChange] = field(default_factory=dict)
    """By `layer_of` their tensors, in the order of the network; empty in records of earlier releases."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


LAYER = re.compile(r"(.+?\.(?:attentions|resnets|downsamplers|upsamplers|layers)\.\d+)\.")


def layer_of(name: str) -> str:
    """The layer of a tensor, by its full name: `unet.down_blocks.0.attentions.1`, `text_encoder.encoder.layers.3`,
    `unet.conv_in`."""
    plain = name.replace(".text_model.", ".", 1)
    found = LAYER.match(plain)
    return found[1] if found else ".".join(plain.split(".")[:2])


def mean_layers(changes: Sequence[Mapping[str, LayerChange]]) -> dict[str, LayerChange]:
    """The mean of every layer over several models (at least one); one that a model leaves alone counts as 0."""
    layers = dict.fromkeys(layer for change in changes for layer in change)
    nothing = LayerChange(0.0, 0.0)
    return {
        layer: LayerChange(
            sum(change.get(layer, nothing).global_l2 for change in changes) / len(changes),
            sum(change.get(layer, nothing).relative_l2 for change in changes) / len(changes),
        )
        for layer in layers
    }


def mean_weight_change(changes: Sequence[WeightChange]) -> WeightChange:
    """The mean of every number over several models (at least one); a group one of them leaves alone counts as 0."""
    groups = sorted({group for change in changes for group in change.groups})
    return WeightChange(
        all=_mean([change.all for change in changes], len(changes)),
        unet=_mean([change.unet for change in changes], len(changes)),
        groups={group: _mean(_having(changes, group), len(changes)) for group in groups},
        layers=mean_layers([change.layers for change in changes]),
    )


def _having(changes: Sequence[WeightChange], group: str) -> list[Norms]:
    return [change.groups[group] for change in changes if group in change.groups]


def _mean(norms: Sequence[Norms], count: int) -> Norms:
    """Over `count` models, of which those without norms count as 0; at least one has some."""

    def mean(name: str) -> float:
        return float(sum(getattr(of, name) for of in norms) / count)

    return Norms(
        challenge=mean("challenge"),
        global_l2=mean("global_l2"),
        relative_l2=mean("relative_l2"),
        global_l1=mean("global_l1"),
        changed_tensors=mean("changed_tensors"),
        parameters=norms[0].parameters,
    )
