"""Parameter groups: which weights a method may change, by the names of the field.

A group is a rule over full names ("unet.…", "text_encoder.…"). Two traps the rules keep to: the norm before a
cross-attention is called `norm2`, so `attn2` does not catch it; and `noxattn` (ESD-u of the authors' first
code) leaves out the time embedding and the output head, which `esd-u` (their diffusers code) trains, while
that leaves out norms.
"""

from collections.abc import Callable, Mapping

from torch import nn

from efface.errors import UserError, did_you_mean
from efface.models.base import Base, named_parameters

OUTSIDE_NOXATTN = ("unet.conv_out.", "unet.conv_norm_out.", "unet.time_embedding.")
# Old ESD's hand-picked blocks: CompVis output_blocks 6 and 8, input_blocks 4 and 7.
XLAYERS = ("unet.up_blocks.2.attentions.0.", "unet.up_blocks.2.attentions.2.")
SELF_LAYERS = ("unet.down_blocks.1.attentions.0.", "unet.down_blocks.2.attentions.0.")
ATTENTION = ("to_q", "to_k", "to_v", "to_out")

Rule = Callable[[str, nn.Module], bool]


def _matrix(owner: nn.Module) -> bool:
    return isinstance(owner, nn.Linear | nn.Conv2d)


# Each rule sees a parameter's full name and the module that owns it.
UNET: dict[str, Rule] = {
    "kv-xattn": lambda name, owner: "attn2.to_k" in name or "attn2.to_v" in name,
    "v-xattn": lambda name, owner: "attn2.to_v" in name,
    "xattn": lambda name, owner: "attn2" in name,
    "noxattn": lambda name, owner: "attn2" not in name and not name.startswith(OUTSIDE_NOXATTN),
    "esd-u": lambda name, owner: "attn2" not in name and _matrix(owner),
    "esd-all": lambda name, owner: _matrix(owner),
    "selfattn": lambda name, owner: "attn1" in name,
    "attn": lambda name, owner: any(part in name for part in ATTENTION),
    "notime": lambda name, owner: not name.startswith(OUTSIDE_NOXATTN),
    "xlayer": lambda name, owner: "attn2" in name and name.startswith(XLAYERS),
    "selflayer": lambda name, owner: "attn1" in name and name.startswith(SELF_LAYERS),
    "transformer": lambda name, owner: ".attentions." in name and name.endswith(".weight") and _matrix(owner),
    "full": lambda name, owner: True,
    "none": lambda name, owner: False,
}
TEXT_ENCODER: dict[str, Rule] = {
    "te-full": lambda name, owner: ".final_layer_norm." not in name,
    "te-base": lambda name, owner: ".encoder." in name or ".final_layer_norm." in name,
    "te-attn": lambda name, owner: ".self_attn." in name,
    "te-mlp": lambda name, owner: ".mlp." in name,
    "te-layer0": lambda name, owner: ".layers.0.self_attn." in name or ".layers.0.mlp." in name,
    "te-embedding": lambda name, owner: ".token_embedding." in name,
}


MEANING = {
    "kv-xattn": "keys and values of the cross-attention",
    "v-xattn": "values of the cross-attention",
    "xattn": "cross-attention",
    "noxattn": "all but cross-attention, time embedding and output head",
    "esd-u": "matrices outside the cross-attention",
    "esd-all": "all matrices",
    "selfattn": "self-attention",
    "attn": "both attentions",
    "notime": "all but time embedding and output head",
    "xlayer": "cross-attention of two blocks",
    "selflayer": "self-attention of two blocks",
    "transformer": "matrices of the transformer blocks",
    "full": "the whole UNet",
    "te-full": "the text encoder but for its last norm",
    "te-base": "the text encoder but for its embeddings",
    "te-attn": "attention of the text encoder",
    "te-mlp": "MLPs of the text encoder",
    "te-layer0": "first layer of the text encoder",
    "te-embedding": "token embeddings of the text encoder",
}
"""Of each group that can hold weights, in a few words."""


def group_names() -> list[str]:
    """Every group's name: those of the UNet first, then those of the text encoder (`te-…`)."""
    return [*UNET, *TEXT_ENCODER]


def select(base: Base | Mapping[str, nn.Module], group: str) -> dict[str, nn.Parameter]:
    """The parameters of `group` by full name, in the modules' order; of `a+b` those of both groups.

    `base` may be a mapping with the component it takes ("unet", "text_encoder"). Raises UserError for an
    unknown group.
    """
    if "+" in group:
        return {name: value for part in group.split("+") for name, value in select(base, part).items()}
    if group not in group_names():
        raise UserError(f"unknown parameter group '{group}': {did_you_mean(group, group_names())}")
    component = "unet" if group in UNET else "text_encoder"
    rule = UNET.get(group) or TEXT_ENCODER[group]
    module = (base.modules if isinstance(base, Base) else base)[component]
    owners = {name: owner for name, owner in module.named_modules()}
    chosen = {}
    for (full_name, parameter), (name, _) in zip(
        named_parameters({component: module}).items(), module.named_parameters(), strict=True
    ):
        if rule(full_name, owners[name.rpartition(".")[0]]):
            chosen[full_name] = parameter
    return chosen
