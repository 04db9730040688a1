"""The names of tensors in files, and those of the model: what trainers and wrappers add is taken off, nothing guessed.

A component is filled where every tensor that it has is found, and nothing is left over. Whatever else would be drawn at
random, or be another model than the file's.
"""

import re
from collections.abc import Mapping, Sequence

from efface.config_files import shown
from efface.errors import UserError
from efface.models.files.model_files import abbreviated

WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What data-parallel training, `torch.compile` and gradient checkpointing put into a name, wherever they wrap."""
STARTS = {
    "unet": ("base_model.model.", "unet."),
    "vae": ("base_model.model.", "vae."),
    "text_encoder": ("base_model.model.", "text_model."),
}
"""What adapters' wrappers, trainers and releases of transformers put before all names of a component."""
OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Parts of the VAE's attention as diffusers called them before 0.18; files of Stable Diffusion 1.x still do."""
ADAPTERS = ("lora_", "lora.", ".base_layer.", "hada_w", "lokr_w", ".modules_to_save.", ".original_module.")
TITLES = {"unet": "UNet", "vae": "VAE", "text_encoder": "text encoder"}

Shape = Sequence[int]


class OtherShape(UserError):
    """The tensors are not those of the configs, but could be of others."""


def unwrapped(name: str) -> str:
    """The name without what wrappers put into it."""
    return WRAPPERS.sub("", name)


def is_of_adapter(name: str) -> bool:
    """Whether a tensor is a LoRA's (or a kin's), or the weight below one."""
    return any(part in name for part in ADAPTERS)


def plain(component: str, name: str) -> str:
    """The name as diffusers and transformers have it today, `text_model.` left out."""
    name = unwrapped(name)
    for start in STARTS[component]:
        name = name.removeprefix(start)
    return OLD_ATTENTION.sub(lambda old: f"{old[1]}.{NEW_ATTENTION[old[2]]}.", name) if component == "vae" else name


def matched(where: object, component: str, found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> dict[str, str]:
    """The plain name of every tensor in the file by its name there; `found` and `wanted` are shapes by name.

    Raises UserError, with `where`, if one that is `wanted` (by its plain name) is missing or found twice, or adapters
    are attached; OtherShape, if some are none of the component's or have another shape.
    """
    names = [name for name in found if not name.endswith("position_ids")]  # 0, 1, …: older files hold them
    adapters = sorted(filter(is_of_adapter, names))
    if adapters:
        raise UserError(
            f"{where}: adapters are still attached to the {TITLES[component]} ({listed(adapters)}); merge them "
            "(merge_and_unload of peft, fuse_lora and unload_lora_weights of diffusers) and save it once more"
        )
    matches: dict[str, str] = {}
    for name in names:
        meant = plain(component, name)
        if meant in matches:
            raise UserError(f"{where}: holds {listed([meant])} twice, as {listed([matches[meant], name])}")
        matches[meant] = name
    missing, strange = sorted(wanted.keys() - matches.keys()), sorted(matches.keys() - wanted.keys())
    odd = [
        f"{shown(name)} as {_size(found[matches[name]])} instead of {_size(shape)}"
        for name, shape in sorted(wanted.items())
        if name in matches and tuple(found[matches[name]]) != tuple(shape)
    ]
    if missing or strange or odd:
        kind = OtherShape if strange or odd else UserError
        raise kind(f"{where}: {_misfit(component, missing, strange, odd, len(wanted))}")
    return {name: meant for meant, name in matches.items()}


def _misfit(component: str, missing: Sequence[str], strange: Sequence[str], odd: Sequence[str], count: int) -> str:
    title = TITLES[component]
    start = strange[0].partition(".")[0] + "." if strange else ""
    if missing and {plain(component, name.removeprefix(start)) for name in strange} == set(missing):
        return (
            f"all names of the {title}'s tensors begin with {shown(start)}, which is not its own; save the {title} "
            "alone, with save_pretrained"
        )
    parts = [f"lacks {len(missing)} of the {count} tensors of the {title} ({listed(missing)})"] if missing else []
    parts += [f"holds {len(strange)} that are none of the {title}'s ({listed(strange)})"] if strange else []
    parts += [f"holds, of the {title}, {abbreviated(odd)}"] if odd else []
    return ", and ".join(parts)


def listed(names: Sequence[str]) -> str:
    """Three of the names as they can be shown, and how many more there are."""
    return abbreviated([shown(name) for name in names])


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a single number"
