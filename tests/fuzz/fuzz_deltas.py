"""Deltas under fuzz: damaged files, forged headers, and files with a right hash and strange content."""

import json
import math
import struct
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from damage import damaged_bytes, damaged_tree
from hypothesis import strategies as st

from efface.models.delta import HEADER, Delta, _sha256

_VALUES = torch.arange(12, dtype=torch.float32)
DELTAS = {
    "weights": Delta(
        "weights", {"unet.a.weight": _VALUES.view(3, 4), "vae.b.bias": _VALUES[:3].clone()}, {"base_id": "f" * 64}
    ),
    "adapter": Delta(
        "adapter",
        {
            "unet.m.down": _VALUES.view(1, 12),
            "unet.m.up": _VALUES.view(12, 1).clone(),
            "unet.m.alpha": torch.tensor(1.0),
        },
        {"job": {"base_id": "f" * 64, "method": "fade", "concepts": ["cat"]}, "job_id": "0" * 16},
    ),
    "hook": Delta("hook", {}, {"base_id": "f" * 64, "hook": {"kind": "negative_prompt", "prompt": "a cat"}}),
}
DTYPES = (
    "F32",
    "F64",
    "F16",
    "BF16",
    "I64",
    "I32",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "C64",
    "F4",
    "F6_E2M3",
    "U16",
    "X",
    "",
)
HEADER_KEYS = (
    "efface",
    "__metadata__",
    "kind",
    "provenance",
    "sha256",
    "base_id",
    "job",
    "dtype",
    "shape",
    "data_offsets",
    "job_id",
    "lineage",
    "method",
    "concepts",
)

MODULE = ("vae.m.down", "vae.m.up", "vae.m.alpha")
_REQUEST = {"job_id": "0" * 16, "method": "esd", "concepts": ["cat"]}
_JOB = {"base_id": "f" * 64, "method": "esd", "concepts": ["cat", "dog"], "config": {}}
PROVENANCES = (
    {"base_id": "f" * 64, "job": {"base_id": "f" * 64}},
    {"job": _JOB, "job_id": "1" * 16, "lineage": [_REQUEST, {**_REQUEST, "concepts": ["dog"]}]},
)


class SmallBase:
    """What an edit asks of a base."""

    fingerprint = "f" * 64

    class spec:
        name = "small"

    def originals(self) -> dict[str, torch.Tensor]:
        return {"unet.a": torch.zeros(2), "vae.m.weight": torch.zeros(4, 3)}


def _file(delta: Delta) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        delta.save(Path(folder) / "delta.safetensors")
        return (Path(folder) / "delta.safetensors").read_bytes()


WHOLE = {kind: _file(delta) for kind, delta in DELTAS.items()}


def _with_header(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@st.composite
def forged_headers(draw: st.DrawFn) -> bytes:
    """A safetensors file whose own header, or efface's in it, was written by somebody else."""
    whole = WHOLE[draw(st.sampled_from(sorted(WHOLE)))]
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    if draw(st.booleans()):
        ours = json.loads(header["__metadata__"][HEADER])
        changed = draw(damaged_tree(ours, HEADER_KEYS))
        header["__metadata__"][HEADER] = json.dumps(changed)
    elif draw(st.booleans()):
        header = draw(damaged_tree(header, HEADER_KEYS))
    else:
        for name in header:
            if name != "__metadata__":
                header[name]["dtype"] = draw(st.sampled_from(DTYPES))
    return _with_header(header, data)


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """A module's parts, of shapes that may fit the weight, one another, or nothing."""
    sizes = st.sampled_from((0, 1, 2, 3, 4, 10**5))
    fitting = st.integers(1, 4).map(lambda rank: ((rank, 3), (4, rank), ()))
    shapes = st.tuples(*[st.lists(sizes, max_size=3).map(tuple)] * 2, st.sampled_from(((), (1,), (2,))))
    drawn = draw(fitting | st.tuples(st.just((1, 10**5)), st.just((10**5, 1)), st.just(())) | shapes)
    number = draw(st.sampled_from((0.0, 1.0, -2.0, 1e38)))
    return {
        name: torch.full(shape, number) for name, shape in zip(MODULE, drawn, strict=True) if math.prod(shape) <= 10**6
    }


@st.composite
def well_signed(draw: st.DrawFn) -> bytes:
    """A delta with a right hash and strange content, as a program of somebody else's might write it."""
    content = draw(damaged_tree(draw(st.sampled_from(PROVENANCES)), HEADER_KEYS))
    dtype = draw(
        st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64))
    )
    shape = draw(st.sampled_from(((), (0,), (2,), (2, 0), (1, 1, 1, 2))))
    names = draw(st.lists(st.sampled_from(("unet.a", *MODULE, "x", "", ".")), max_size=3))
    value = torch.full(
        shape, draw(st.sampled_from((0, 1, float("nan"))) if dtype.is_floating_point else st.just(1)), dtype=dtype
    )
    tensors = draw(st.one_of(st.just({name: value.clone() for name in names}), adapters()))
    delta = Delta(draw(st.sampled_from(sorted(DELTAS))), tensors, content)
    try:
        header = {"kind": delta.kind, "provenance": delta.provenance, "sha256": delta.id.ljust(64, "0")}
        header["sha256"] = _sha256(delta)
    except ValueError:  # NaN, lone surrogates: no hash is right
        header = {"kind": delta.kind, "provenance": delta.provenance, "sha256": "0" * 64}
    return safetensors.torch.save(delta.tensors, metadata={HEADER: json.dumps(header)})


def check_damaged(drawn: bytes, folder: Path) -> bool:
    """What is accepted is one of the deltas that were damaged, unchanged: nothing else has a right hash."""
    path = folder / "delta.safetensors"
    path.write_bytes(drawn)
    delta = Delta.load(path)
    before = DELTAS[delta.kind]
    assert delta.provenance == before.provenance and set(delta.tensors) == set(before.tensors)
    assert all(torch.equal(delta.tensors[name], tensor) for name, tensor in before.tensors.items())
    return True


def check_well_signed(drawn: bytes, folder: Path) -> bool:
    """What is accepted is finite, fp32, names its base, reads back the same, and is applied or refused."""
    path = folder / "delta.safetensors"
    path.write_bytes(drawn)
    delta = Delta.load(path)
    assert delta.base_id and all(t.dtype == torch.float32 and t.isfinite().all() for t in delta.tensors.values())
    delta.save(path)
    assert Delta.load(path).id == delta.id
    assert all(set(request) >= {"job_id", "method", "concepts"} for request in delta.lineage)
    base: Any = SmallBase()
    originals = base.originals()
    for name, value in delta.edited(base, force=True).items():
        assert value.shape == originals[name].shape and value.isfinite().all()
    return True


damaged = st.one_of(*(damaged_bytes(whole) for whole in WHOLE.values()), forged_headers(), st.binary(max_size=64))
