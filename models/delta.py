"""A delta: what a job changed, and nothing else, in one safetensors file that carries its own provenance.

Three kinds. `weights`: new values of whole tensors, by full name. `adapter`: for a module M of rank r,
`M.down` (r, in, …), `M.up` (out, r, …) and the scalar `M.alpha`; merged, its weight is W + alpha / r * up @
down. `hook`: the provenance names what acts at sampling time, and the tensors are
its own; no weight changes.

The same content gives the same bytes, and those bytes are checked by their own hash when read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from efface.errors import UserError, did_you_mean
from efface.files import local_path, write_atomic
from efface.models.delta_checks import provenance_error, tensors_error
from efface.plain_files import check_plain

if TYPE_CHECKING:
    from efface.models.base import Base

Kind = Literal["weights", "adapter", "hook"]
HEADER = "efface"  # the one key of the file's metadata: with several, safetensors would write them in any order


@dataclass
class Delta:
    """fp32 tensors on the CPU, and JSON that names the base's fingerprint as `base_id`, or in its `job`."""

    kind: Kind
    tensors: dict[str, Tensor]
    provenance: dict[str, Any]

    @property
    def base_id(self) -> str:
        """The fingerprint of the base it was made from."""
        return _base_id(self.provenance)

    @property
    def id(self) -> str:
        """16 hex digits of the hash of everything in it."""
        return _sha256(self)[:16]

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The requests that led to it, the oldest first and its own last; empty where no job made it.

        Each has the `job_id`, the `method`, the `concepts` of that request alone, and the id of the `delta` it left.
        """
        provenance = self.provenance
        if "job_id" not in provenance:
            return []
        alone = {
            "job_id": provenance["job_id"],
            "method": provenance["job"]["method"],
            "concepts": provenance["job"]["concepts"],
        }
        *before, own = provenance.get("lineage", [alone])
        return [*before, {**own, "delta": self.id}]

    def save(self, path: str | Path) -> None:
        """Write it to `path`, atomically. Raises UserError where that cannot be done."""
        header = {"kind": self.kind, "provenance": self.provenance, "sha256": _sha256(self)}
        write_atomic(local_path(path), safetensors.torch.save(self.tensors, metadata={HEADER: _canonical(header)}))

    @staticmethod
    def load(path: str | Path) -> Delta:
        """The delta in a file. Raises UserError where it is missing, broken, changed, or something else."""
        tensors, header = _read(local_path(path))
        try:
            delta = Delta(header["kind"], tensors, header["provenance"])
            error = _validation_error(delta, header)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
            error = "its header is not one that efface wrote"
        if error:
            raise UserError(f"{path}: not a usable delta, {error}")
        return delta

    def edited(self, base: Base, force: bool = False) -> dict[str, Tensor]:
        """The new value of every changed weight of `base`, by full name; adapters merged.

        Raises UserError where the delta was made from another base (unless `force`), or does not fit this
        one.
        """
        if not force and self.base_id != base.fingerprint:
            raise UserError(
                f"delta {self.id} was made from the base {self.base_id[:16]}, not from '{base.spec.name}' "
                f"({base.fingerprint[:16]}); use the base it was made from"
            )
        if self.kind == "hook":
            return {}
        originals = base.originals()
        edited = merge(self.tensors, originals) if self.kind == "adapter" else self.tensors
        for name, value in edited.items():
            if name not in originals:
                raise UserError(f"delta {self.id}: '{name}' is no tensor of the base '{base.spec.name}'")
            if value.shape != originals[name].shape:
                shapes = f"{tuple(value.shape)}, should be {tuple(originals[name].shape)}"
                raise UserError(f"delta {self.id}: '{name}' has the shape {shapes} for the base '{base.spec.name}'")
        return edited

    def has_effect(self, base: Base, parent: Delta | None = None) -> bool:
        """Whether it acts at sampling time, or any weight differs from the base's, or from those of `parent`'s model.

        Without an effect (a relative L2 of 0) nothing can have been forgotten. Raises as `edited` does.
        """
        if self.kind == "hook":
            return True
        before = base.originals() | (parent.edited(base) if parent else {})
        edited = self.edited(base).items()
        return not all(torch.equal(value.to(before[name].device), before[name]) for name, value in edited)


def merge(adapter: Mapping[str, Tensor], originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + alpha / r * up @ down of every module in `adapter`, by the full name of its weight.

    Of a weight (out, in, …), down is (r, in, …) and up is (out, r, 1, …), as many dimensions each. Raises UserError
    for an unknown module, for other shapes, and where the sum is not finite.
    """
    merged = {}
    for module in sorted(name.removesuffix(".down") for name in adapter if name.endswith(".down")):
        name = f"{module}.weight"
        if name not in originals:
            raise UserError(f"'{module}' has an adapter but is no module of this base: {did_you_mean(name, originals)}")
        weight = originals[name]
        down, up = (adapter[f"{module}.{part}"] for part in ("down", "up"))
        rank, (d_out, *rest) = len(down), weight.shape
        if not rank or list(down.shape) != [rank, *rest] or list(up.shape) != [d_out, rank, *[1] * (len(rest) - 1)]:
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise UserError(f"'{module}': an adapter of the shapes {shapes} does not fit {tuple(weight.shape)}")
        down, up = (part.to(weight.device, torch.float32).flatten(1) for part in (down, up))
        merged[name] = weight + (up @ down * (adapter[f"{module}.alpha"].item() / rank)).view_as(weight)
        if not merged[name].isfinite().all():
            raise UserError(f"'{module}': the adapter makes weights that are not finite")
    return merged


def stack(base: Base, below: Delta, kind: Kind, above: Mapping[str, Tensor]) -> tuple[Kind, dict[str, Tensor]]:
    """Kind and tensors, relative to `base`, of what the tensors `above`, of `kind`, make of the model of `below`.

    Adapters on adapters stay adapters, of the ranks' sum: s1 up1 down1 + s2 up2 down2 is [s1 up1, s2 up2] times
    [down1; down2]. Else they are weights: whatever `above` changed in its value, the rest of `below` bit for bit.
    """
    if below.kind == kind == "adapter":
        return "adapter", _stacked(below.tensors, above)
    edited = below.edited(base)
    return "weights", {**edited, **(merge(above, base.originals() | edited) if kind == "adapter" else above)}


def _stacked(*adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One adapter that adds what all of these add; a module of one alone keeps its tensors."""
    tensors = {name: tensor for adapter in adapters for name, tensor in adapter.items()}
    for module in sorted(name.removesuffix(".down") for name in tensors if name.endswith(".down")):
        downs, ups = [], []
        for adapter in adapters:
            if f"{module}.down" in adapter:
                down, up = adapter[f"{module}.down"].cpu(), adapter[f"{module}.up"].cpu()
                downs.append(down)
                ups.append(up * (adapter[f"{module}.alpha"].item() / down.shape[0]))
        if len(downs) > 1:
            tensors[f"{module}.down"], tensors[f"{module}.up"] = torch.cat(downs), torch.cat(ups, dim=1)
            tensors[f"{module}.alpha"] = torch.tensor(float(len(tensors[f"{module}.down"])))
    return tensors


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of the file."""
    try:
        check_plain(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise UserError(f"{path}: a safetensors file, but not a delta written by efface")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata[HEADER])  # noqa: SIM118
    except (FileNotFoundError, IsADirectoryError):
        hint = "" if path.suffix == ".safetensors" and not path.is_dir() else "; a delta is one .safetensors file"
        raise UserError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, RecursionError):
        raise UserError(f"{path}: not a whole safetensors file") from None


def _validation_error(delta: Delta, header: dict[str, Any]) -> str | None:
    """What is wrong with a delta just read, or None."""
    if set(header) != {"kind", "provenance", "sha256"} or delta.kind not in get_args(Kind):
        return "its header is not one that efface wrote"
    if _sha256(delta) != header["sha256"]:
        return "its content was changed after it was written"
    return provenance_error(delta.provenance) or tensors_error(delta.kind, delta.tensors)


def _base_id(provenance: dict[str, Any]) -> str:
    return str(provenance.get("base_id") or provenance.get("job", {}).get("base_id") or "")


def _sha256(delta: Delta) -> str:
    digest = hashlib.sha256(_canonical([delta.kind, delta.provenance]).encode())
    for name, tensor in sorted(delta.tensors.items()):
        digest.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
