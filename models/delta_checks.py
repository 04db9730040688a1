"""What a delta's tensors and provenance must be before anything is computed from them: the file may be a stranger's.

Each check gives what is wrong as part of a sentence, or None. Nothing larger than the tensors is allocated.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

COMPONENTS = ("unet", "text_encoder", "vae")
PARTS = ("down", "up", "alpha")


def tensors_error(kind: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Finite fp32 tensors of the components; in an adapter down (r, in, …), up (out, r, …) and the scalar alpha."""
    for name, tensor in tensors.items():
        if name.split(".")[0] not in COMPONENTS or tensor.dtype != torch.float32:
            return f"'{name}' ({tensor.dtype}) is no fp32 tensor of {', '.join(COMPONENTS)}"
        if not tensor.isfinite().all():
            return f"'{name}' holds numbers that are not finite"
    return _adapter_error(tensors) if kind == "adapter" else None


def _adapter_error(tensors: Mapping[str, Tensor]) -> str | None:
    modules = sorted({name.rpartition(".")[0] for name in tensors})
    if set(tensors) != {f"{module}.{part}" for module in modules for part in PARTS}:
        return "an adapter needs down, up and alpha of each module, and nothing else"
    for module in modules:
        down, up, alpha = (tensors[f"{module}.{part}"] for part in PARTS)
        if alpha.ndim:
            return f"alpha of '{module}' has the shape {tuple(alpha.shape)}, should be one number"
        if down.ndim < 2 or up.ndim != down.ndim or down.shape[0] != up.shape[1] or down.shape[0] == 0:
            shapes = f"down {tuple(down.shape)} and up {tuple(up.shape)}"
            return f"'{module}' has {shapes}, should be (rank, in, …) and (out, rank, …) of one rank, at least 1"
    return None


def provenance_error(provenance: Any) -> str | None:
    """A mapping that names its base; the job, its id and the lineage are what a chain of requests goes on from."""
    if not isinstance(provenance, dict):
        return "its provenance is no mapping"
    job = provenance.get("job", {})
    if not isinstance(job, dict):
        return "its job is no mapping"
    if not any(isinstance(holder.get("base_id"), str) and holder["base_id"] for holder in (provenance, job)):
        return "its provenance names no base"
    if "concepts" in job and not _texts(job["concepts"]):
        return "the concepts of its job are no list of names"
    if "job_id" in provenance and not _is_request({**job, "job_id": provenance["job_id"]}):
        return "its job lacks an id, a method or concepts of the right kind"
    lineage = provenance.get("lineage")
    if "lineage" in provenance and not (isinstance(lineage, list) and lineage and all(map(_is_request, lineage))):
        return "its lineage is no list of requests, each with a job_id, a method and concepts"
    return None


def _is_request(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("job_id"), str)
        and re.fullmatch("[0-9a-f]{16}", entry["job_id"]) is not None
        and isinstance(entry.get("method"), str)
        and _texts(entry.get("concepts"))
    )


def _texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) for text in value)
