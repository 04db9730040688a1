"""A model that somebody else edited, as the tensors of a delta: what an auditor has, and no job of efface made.

Read are

- a whole model: a diffusers folder, or one file in CompVis' layout;
- a UNet's state dict, whole or in part, by diffusers' names or CompVis', as the papers' own scripts save it (`.pt`,
  `.ckpt`, `.bin` with tensors alone, or safetensors);
- a LoRA of linear layers and 1x1 convolutions, in the names of diffusers, peft (a file, or the adapter's folder) or
  kohya.

Only weights are compared. What else would make it another model (another vocabulary or prediction) is refused.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import Tensor

from efface.errors import UserError
from efface.files import local_path
from efface.models.base import Base, load_base
from efface.models.delta import Kind
from efface.models.files.lora_alpha import CONFIG, alpha_of, read_settings
from efface.models.files.single_file import UNET, VAE
from efface.models.files.tensor_names import listed, plain, unwrapped
from efface.models.files.weights_file import read_checkpoint

PEFT = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+?)(?:\.processor)?\.lora_(?P<part>[AB])(?:\.\w+)?\.weight$")
OLD_DIFFUSERS = re.compile(r"^(?P<module>.+?)\.lora\.(?P<part>down|up)\.weight$")
PROCESSOR = re.compile(r"^(?P<module>.+)\.processor\.(?P<name>to_\w+?)_lora\.(?P<part>down|up)\.weight$")
KOHYA = re.compile(r"^(?P<root>lora_unet|lora_te)_(?P<module>.+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)$")
KOHYA_ROOTS = {"lora_unet": "unet", "lora_te": "text_encoder"}
PARTS = {"A": "down", "B": "up", "down": "down", "up": "up", "lora_down.weight": "down", "lora_up.weight": "up"}
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")

logger = logging.getLogger(__name__)


def read_foreign(path: str | Path, base: Base) -> tuple[Kind, dict[str, Tensor]]:
    """Kind and tensors (fp32, by full name) of the delta that makes `base` the model in `path`.

    Raises UserError where it is of another kind or architecture, does not differ from the base, or differs in more than
    weights.
    """
    path = local_path(path)
    if (path / CONFIG).is_file():
        path = next((file for name in PEFT_FILES if (file := path / name).is_file()), path / PEFT_FILES[0])
    if path.is_dir():
        return "weights", _difference(path, base)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    tensors = {unwrapped(name): tensor for name, tensor in read_checkpoint(path).items()}
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    if any(name.startswith(VAE) for name in tensors):
        return "weights", _difference(path, base)
    adapter = _adapter(path, tensors, base)
    return ("adapter", adapter) if adapter else ("weights", _unet(path, tensors, base))


def _difference(path: Path, base: Base) -> dict[str, Tensor]:
    """What a whole model has otherwise than the base."""
    other = load_base(str(path))
    if other.scheduler_config.get("prediction_type", "epsilon") != base.scheduler_config.get(
        "prediction_type", "epsilon"
    ):
        raise UserError(f"{path}: predicts another quantity than base '{base.spec.name}', so it is no edit of it")
    if other.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise UserError(
            f"{path}: has another vocabulary than base '{base.spec.name}', so it is more than an edit of weights"
        )
    theirs = other.originals()
    return _changed(path, theirs, base, whole=True)


def _unet(path: Path, tensors: Mapping[str, Tensor], base: Base) -> dict[str, Tensor]:
    """What a UNet's state dict has otherwise; it may hold some of the tensors only."""
    if any(name.startswith(UNET) for name in tensors) or any(name.startswith("input_blocks.") for name in tensors):
        named = {name if name.startswith(UNET) else f"{UNET}{name}": tensor for name, tensor in tensors.items()}
        try:
            converted = convert_ldm_unet_checkpoint(named, config=dict(base.unet.config))
        except Exception as error:  # whatever stumbles over names that are not there
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            raise UserError(f"{path}: is no whole UNet in CompVis' layout ({reason})") from None
        tensors = {name: tensor for name, tensor in converted.items() if tensor is not None}
    return _changed(
        path, {f"unet.{plain('unet', name)}": tensor for name, tensor in tensors.items()}, base, whole=False
    )


def _changed(path: Path, theirs: Mapping[str, Tensor], base: Base, whole: bool) -> dict[str, Tensor]:
    """Those of `theirs` that differ from the base's. Raises UserError where they are of another model, or none does."""
    originals = base.originals()
    strange = sorted(theirs.keys() - originals.keys())
    missing = sorted(originals.keys() - theirs.keys()) if whole else []
    odd = sorted(name for name in theirs.keys() & originals.keys() if theirs[name].shape != originals[name].shape)
    for names, what in (
        (strange, "which base '{}' does not have"),
        (missing, "less than base '{}'"),
        (odd, "of another shape than in base '{}'"),
    ):
        if names:
            held = "lacks" if names is missing else "holds"
            raise UserError(f"{path}: {held} {len(names)} tensors ({listed(names)}) {what.format(base.spec.name)}")
    changed = {}
    for name, value in theirs.items():
        value = value.detach().to("cpu", torch.float32).contiguous()
        if not value.isfinite().all():
            raise UserError(f"{path}: '{name}' holds numbers that are not finite")
        if not torch.equal(value, originals[name].cpu()):
            changed[name] = value
    if not changed:
        raise UserError(f"{path}: has the weights of base '{base.spec.name}', so nothing was erased from it")
    return changed


def _adapter(path: Path, tensors: Mapping[str, Tensor], base: Base) -> dict[str, Tensor]:
    """A LoRA as the tensors of an adapter; nothing where it is none. Raises UserError where it does not fit."""
    modules = {
        f"{component}.{name}": module
        for component in ("unet", "text_encoder")
        for name, module in base.modules[component].named_modules()
    }
    by_kohya = {name.replace(".", "_"): name for name in modules}
    found: dict[str, dict[str, Tensor]] = {}
    unread = []
    for name, tensor in tensors.items():
        module, part = _lora_name(name, by_kohya)
        if module is None:
            unread.append(name)
        else:
            found.setdefault(module, {})[part] = tensor.detach().to("cpu", torch.float32).contiguous()
    if not found:
        return {}
    unknown = sorted({module for module in found if module not in modules} | set(unread))
    if unknown:
        raise UserError(
            f"{path}: a LoRA with {len(unknown)} parts that base '{base.spec.name}' does not have ({listed(unknown)})"
        )
    settings, originals = read_settings(path), base.originals()
    adapter: dict[str, Tensor] = {}
    unknown_alpha = False
    for module, parts in found.items():
        if not {"down", "up"} <= parts.keys():
            raise UserError(
                f"{path}: the LoRA of '{module}' lacks its {'down' if 'down' not in parts else 'up'} matrix"
            )
        own = settings.get(module.partition(".")[0])
        rank = parts["down"].shape[0]
        if "alpha" not in parts:
            unknown_alpha |= own is None
            parts["alpha"] = torch.tensor(alpha_of(own, module, rank, path) if own is not None else float(rank))
        if parts["alpha"].numel() != 1:
            raise UserError(f"{path}: alpha of '{module}' is {parts['alpha'].numel()} numbers, should be one")
        if not all(part.isfinite().all() for part in parts.values()):
            raise UserError(f"{path}: the LoRA of '{module}' holds numbers that are not finite")
        adapter |= _like_the_layer(module, parts, originals)
        adapter[f"{module}.alpha"] = parts["alpha"].reshape(())
    if unknown_alpha:
        logger.warning(
            "%s: says nowhere what alpha is, neither in the file nor in an %s beside it; it is taken to be the rank",
            *(path, CONFIG),
        )
    return adapter


def _like_the_layer(module: str, parts: Mapping[str, Tensor], originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """down and up with the dimensions of the module's weight: of a 1x1 convolution some write matrices."""
    weight = originals.get(f"{module}.weight")
    if weight is None:
        return {f"{module}.{part}": parts[part] for part in ("down", "up")}
    kernel = weight.shape[2:]
    kernels = {"down": kernel, "up": [1] * len(kernel)}
    return {f"{module}.{part}": _with_kernel(parts[part], kernels[part]) for part in kernels}


def _with_kernel(value: Tensor, kernel: Sequence[int]) -> Tensor:
    ones = all(size == 1 for size in (*value.shape[2:], *kernel))
    return value.reshape(*value.shape[:2], *kernel) if ones and value.ndim >= 2 else value


def _lora_name(name: str, by_kohya: Mapping[str, str]) -> tuple[str | None, str]:
    """The module that a LoRA's tensor is of, by its full name, and its part: down, up or alpha."""
    kohya = KOHYA.match(name)
    if kohya:
        module = f"{KOHYA_ROOTS[kohya['root']]}_{kohya['module']}".replace("text_encoder_text_model_", "text_encoder_")
        return by_kohya.get(module, f"{kohya['root']}_{kohya['module']}"), PARTS.get(kohya["part"], "alpha")
    processor = PROCESSOR.match(name)
    if processor:
        layer = "to_out.0" if processor["name"] == "to_out" else processor["name"]
        return _full(f"{processor['module']}.{layer}"), PARTS[processor["part"]]
    other = PEFT.match(name) or OLD_DIFFUSERS.match(name)
    return (_full(other["module"]), PARTS[other["part"]]) if other else (None, "")


def _full(module: str) -> str:
    """With its component before it; a UNet's LoRA often has none."""
    start, _, rest = module.partition(".")
    if start == "text_encoder":
        return f"text_encoder.{rest.removeprefix('text_model.')}"
    return module if start == "unet" else f"unet.{module}"
