"""A delta: exact on the round trip, the same bytes for the same content, merged and added as the formulas say."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import DiffusionPipeline, PNDMScheduler
from safetensors import safe_open

from efface.errors import UserError
from efface.models.base import Base
from efface.models.delta import Delta, stack
from efface.models.export import export

KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
VALUE = KEY.replace("to_k", "to_v")
PROJECTION = "unet.mid_block.attentions.0.proj_in.weight"  # a 1 x 1 convolution


def delta_of(base: Base, tensors: dict[str, torch.Tensor], kind: Any = "weights", **provenance: Any) -> Delta:
    return Delta(kind, tensors, {"base_id": base.fingerprint, **provenance})


def moved(base: Base, seed: int, *names: str) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    tensors = base.originals()
    return delta_of(
        base, {name: tensors[name] + torch.randn(tensors[name].shape, generator=generator) for name in names}
    )


def adapter(base: Base, weight: str, rank: int, alpha: float) -> Delta:
    generator = torch.Generator().manual_seed(3)
    d_out, d_in, *kernel = base.tensors()[weight].shape
    module = weight.removesuffix(".weight")
    down = torch.randn(rank, d_in, *kernel, generator=generator)
    up = torch.randn(d_out, rank, *kernel, generator=generator)
    tensors = {f"{module}.down": down, f"{module}.up": up, f"{module}.alpha": torch.tensor(alpha)}
    return delta_of(base, tensors, "adapter")


def parts(down: tuple[int, ...], up: tuple[int, ...], alpha: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    return {"unet.x.down": torch.ones(down), "unet.x.up": torch.ones(up), "unet.x.alpha": torch.ones(alpha)}


REQUEST = {"method": "esd", "concepts": ["cat"]}


def test_the_round_trip_is_exact(tiny_base: Base, tmp_path: Path) -> None:
    delta = delta_of(tiny_base, moved(tiny_base, 1, KEY, VALUE).tensors, concepts=["Van Gogh"], note="é")
    delta.save(tmp_path / "d.safetensors")
    loaded = Delta.load(tmp_path / "d.safetensors")
    assert (loaded.kind, loaded.provenance, loaded.id) == (delta.kind, delta.provenance, delta.id)
    assert loaded.tensors.keys() == delta.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], delta.tensors[name]) for name in delta.tensors)


def test_bytes_are_a_function_of_content(tiny_base: Base, tmp_path: Path) -> None:
    delta = moved(tiny_base, 1, KEY, VALUE)
    other = Delta("weights", dict(reversed(delta.tensors.items())), dict(reversed(delta.provenance.items())))
    files = []
    for number, one in enumerate((delta, other, delta, other)):
        one.save(tmp_path / str(number))
        files.append((tmp_path / str(number)).read_bytes())
    assert len(set(files)) == 1
    assert delta.id == other.id


def test_another_content_has_another_id(tiny_base: Base) -> None:
    delta = moved(tiny_base, 1, KEY)
    assert len({delta.id, moved(tiny_base, 2, KEY).id, delta_of(tiny_base, delta.tensors, seed=1).id}) == 3


def test_the_header_tells_where_it_comes_from(tiny_base: Base, tmp_path: Path) -> None:
    moved(tiny_base, 1, KEY).save(tmp_path / "d.safetensors")
    with safe_open(tmp_path / "d.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["efface"])["provenance"] == {"base_id": tiny_base.fingerprint}


def test_the_base_may_be_named_in_the_job(tiny_base: Base) -> None:
    delta = Delta("weights", {}, {"job": {"base_id": tiny_base.fingerprint}})
    assert delta.base_id == tiny_base.fingerprint


def test_every_flipped_bit_and_every_cut_is_found(tiny_base: Base, tmp_path: Path) -> None:
    file = tmp_path / "d.safetensors"
    moved(tiny_base, 1, KEY).save(file)
    whole = file.read_bytes()
    for place in [*range(0, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"d\.safetensors: "):
            Delta.load(file)
    for length in (0, 7, 8, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"d\.safetensors: "):
            Delta.load(file)


@pytest.mark.parametrize(
    ("tensors", "provenance", "kind", "fault"),
    [
        ({KEY: torch.zeros(2)}, {}, "weights", "names no base"),
        ({KEY: torch.zeros(2).half()}, {"base_id": "f"}, "weights", "no fp32 tensor"),
        ({KEY: torch.tensor([torch.nan])}, {"base_id": "f"}, "weights", "not finite"),
        ({"safety.x": torch.zeros(2)}, {"base_id": "f"}, "weights", "no fp32 tensor of unet"),
        ({"unet.x.down": torch.zeros(2)}, {"base_id": "f"}, "adapter", "down, up and alpha"),
        (parts((0, 3), (4, 0)), {"base_id": "f"}, "adapter", "one rank, at least 1"),
        (parts((2, 3), (4, 5)), {"base_id": "f"}, "adapter", "one rank, at least 1"),
        (parts((), (4, 1)), {"base_id": "f"}, "adapter", "one rank, at least 1"),
        (parts((2, 3), (4, 2), alpha=(2,)), {"base_id": "f"}, "adapter", "alpha of 'unet.x'.*should be one number"),
        ({}, {"base_id": ["f"]}, "weights", "names no base"),
        ({}, {"base_id": "f", "job": "x"}, "weights", "its job is no mapping"),
        ({}, {"job": {"base_id": "f", "concepts": "cat"}}, "weights", "concepts of its job are no list"),
        ({}, {"job": {"base_id": "f", "concepts": [5]}}, "weights", "concepts of its job are no list"),
        ({}, {"base_id": "f", "job_id": "0" * 16}, "weights", "lacks an id, a method or concepts"),
        ({}, {"job": {"base_id": "f", **REQUEST, "job_id": 5}, "job_id": "../x"}, "weights", "lacks an id"),
        ({}, {"job": {"base_id": "f", **REQUEST}, "job_id": "0" * 16, "lineage": []}, "weights", "lineage is no list"),
        (
            {},
            {"job": {"base_id": "f", **REQUEST}, "job_id": "0" * 16, "lineage": "ab"},
            "weights",
            "lineage is no list",
        ),
        ({}, {"job": {"base_id": "f"}, "lineage": [REQUEST]}, "weights", "lineage is no list"),
        ({KEY: torch.zeros(2)}, {"base_id": "f"}, "patch", "header"),
    ],
)
def test_what_is_no_delta_is_refused(
    tensors: dict[str, torch.Tensor], provenance: dict[str, Any], kind: Any, fault: str, tmp_path: Path
) -> None:
    Delta(kind, tensors, provenance).save(tmp_path / "d.safetensors")
    with pytest.raises(UserError, match=fault):
        Delta.load(tmp_path / "d.safetensors")


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "header.safetensors").write_bytes(
        safetensors.torch.save({"x": torch.zeros(1)}, metadata={"efface": "[]"})
    )
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pt")
    for name in ("x.safetensors", "header.safetensors", "x.pt", "missing.safetensors", "."):
        with pytest.raises(UserError):
            Delta.load(tmp_path / name)


@pytest.mark.parametrize("weight", [KEY, PROJECTION])
def test_an_adapter_is_merged_as_w_plus_alpha_over_rank_up_down(tiny_base: Base, weight: str) -> None:
    delta = adapter(tiny_base, weight, rank=4, alpha=2.0)
    module = weight.removesuffix(".weight")
    original = tiny_base.tensors()[weight].clone()
    down, up = delta.tensors[f"{module}.down"].squeeze(), delta.tensors[f"{module}.up"].squeeze()
    expected = original.squeeze().double() + 2.0 / 4 * torch.einsum("or,ri->oi", up.double(), down.double())
    tiny_base.swap(delta)
    torch.testing.assert_close(tiny_base.tensors()[weight].squeeze().double(), expected, atol=1e-5, rtol=1e-5)
    tiny_base.swap(None)
    assert torch.equal(tiny_base.tensors()[weight], original)


def test_an_adapter_of_a_3x3_convolution_merges_to_the_same_map(tiny_base: Base) -> None:
    weight = tiny_base.unet.conv_in.weight
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 4, 3, 3, generator=generator), torch.randn(len(weight), 2, 1, 1, generator=generator)
    name = "unet.conv_in"
    delta = delta_of(tiny_base, {f"{name}.down": down, f"{name}.up": up, f"{name}.alpha": torch.tensor(2.0)}, "adapter")
    x = torch.randn(1, 4, 8, 8, generator=generator)
    conv = torch.nn.functional.conv2d
    expected = conv(x, weight, padding=1) + conv(conv(x, down, padding=1), up)
    merged = delta.edited(tiny_base)["unet.conv_in.weight"]
    torch.testing.assert_close(conv(x, merged, padding=1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["unet.no.such.weight", PROJECTION])
def test_a_delta_that_does_not_fit_is_refused(tiny_base: Base, name: str) -> None:
    with pytest.raises(UserError, match=name):
        delta_of(tiny_base, {name: torch.zeros(3)}).edited(tiny_base)
    with pytest.raises(UserError, match=name.removesuffix(".weight")):
        module = name.removesuffix(".weight")
        parts = {"down": torch.zeros(1, 5), "up": torch.zeros(7, 1), "alpha": torch.tensor(1.0)}
        delta_of(tiny_base, {f"{module}.{k}": v for k, v in parts.items()}, "adapter").edited(tiny_base)


@pytest.mark.parametrize("change", ["transposed", "huge", "one number a row"])
def test_an_adapter_is_compared_with_its_layer_before_it_is_multiplied(tiny_base: Base, change: str) -> None:
    """The product of the huge one would take 36 TB."""
    d_out, d_in = tiny_base.tensors()[KEY].shape
    assert d_out != d_in
    shapes = {"transposed": (d_in, d_out), "huge": (3_000_000, 3_000_000), "one number a row": (d_out, 1)}
    rows, columns = shapes[change]
    named = {"down": torch.ones(1, columns), "up": torch.ones(rows, 1), "alpha": torch.tensor(1.0)}
    module = KEY.removesuffix(".weight")
    delta = delta_of(tiny_base, {f"{module}.{part}": value for part, value in named.items()}, "adapter")
    with pytest.raises(UserError, match="does not fit"):
        delta.edited(tiny_base)


def test_an_adapter_that_merges_to_infinity_is_refused(tiny_base: Base) -> None:
    delta = adapter(tiny_base, KEY, rank=2, alpha=2.0)
    delta.tensors = {name: value * 1e38 if value.ndim else value for name, value in delta.tensors.items()}
    with pytest.raises(UserError, match="not finite"):
        delta.edited(tiny_base)


@pytest.mark.parametrize("weight", [KEY, PROJECTION])
def test_stacked_adapters_are_one_that_adds_what_both_add(tiny_base: Base, weight: str) -> None:
    below, above = adapter(tiny_base, weight, rank=4, alpha=2.0), adapter(tiny_base, weight, rank=2, alpha=3.0)
    kind, tensors = stack(tiny_base, below, "adapter", above.tensors)
    original = tiny_base.originals()[weight]
    added = [delta.edited(tiny_base)[weight].double() - original.double() for delta in (below, above)]
    stacked = delta_of(tiny_base, tensors, kind)
    assert stacked.kind == "adapter" and tensors[weight.replace(".weight", ".down")].shape[0] == 6
    torch.testing.assert_close(
        stacked.edited(tiny_base)[weight].double(), original + added[0] + added[1], atol=1e-5, rtol=0
    )


def test_a_module_of_one_adapter_alone_keeps_its_tensors(tiny_base: Base) -> None:
    below, above = adapter(tiny_base, KEY, rank=4, alpha=2.0), adapter(tiny_base, VALUE, rank=2, alpha=3.0)
    _, tensors = stack(tiny_base, below, "adapter", above.tensors)
    assert tensors == {**below.tensors, **above.tensors}


def test_weights_lie_over_weights_and_over_merged_adapters(tiny_base: Base) -> None:
    above = moved(tiny_base, 2, KEY)
    for below in (moved(tiny_base, 1, KEY, VALUE), adapter(tiny_base, VALUE, 2, 1.0)):
        kind, tensors = stack(tiny_base, below, "weights", above.tensors)
        assert kind == "weights" and tensors.keys() == {KEY, VALUE}
        assert torch.equal(tensors[KEY], above.tensors[KEY])
        assert torch.equal(tensors[VALUE], below.edited(tiny_base)[VALUE])


def test_an_adapter_over_weights_is_merged_into_them(tiny_base: Base) -> None:
    below, above = moved(tiny_base, 1, KEY), adapter(tiny_base, KEY, 2, 1.0)
    kind, tensors = stack(tiny_base, below, "adapter", above.tensors)
    added = above.edited(tiny_base)[KEY].double() - tiny_base.originals()[KEY].double()
    assert kind == "weights"
    torch.testing.assert_close(tensors[KEY].double(), below.tensors[KEY].double() + added, atol=1e-5, rtol=0)


def test_the_lineage_of_a_job_s_delta_is_its_own_request(tiny_base: Base) -> None:
    job = {"method": "esd", "concepts": ["cat", "dog"], "base_id": tiny_base.fingerprint}
    delta = Delta("weights", {}, {"job": job, "job_id": "1" * 16})
    own = {"job_id": "1" * 16, "method": "esd", "concepts": ["cat", "dog"], "delta": delta.id}
    assert delta.lineage == [own]
    assert moved(tiny_base, 1, KEY).lineage == []


def test_the_lineage_of_a_chain_survives_the_file(tiny_base: Base, tmp_path: Path) -> None:
    job = {"method": "esd", "concepts": ["cat", "dog"], "base_id": tiny_base.fingerprint}
    first = {"job_id": "0" * 16, "method": "esd", "concepts": ["cat"], "delta": "f" * 16}
    second = {"job_id": "1" * 16, "method": "esd", "concepts": ["dog"]}
    delta = Delta("weights", {}, {"job": job, "job_id": "1" * 16, "lineage": [first, second]})
    delta.save(tmp_path / "d.safetensors")
    assert Delta.load(tmp_path / "d.safetensors").lineage == [first, {**second, "delta": delta.id}]


def test_a_hook_changes_no_weight(tiny_base: Base) -> None:
    hook = delta_of(tiny_base, {}, "hook", hook={"name": "negative-prompt", "config": {"prompt": "x"}})
    assert hook.edited(tiny_base) == {}


def test_an_export_is_a_whole_pipeline_with_the_edited_weights(tiny_base: Base, tmp_path: Path) -> None:
    applied, delta = moved(tiny_base, 1, VALUE), moved(tiny_base, 2, KEY)
    tiny_base.swap(applied)
    export(tiny_base, delta, tmp_path / "out")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    exported = dict(pipeline.unet.named_parameters())
    assert torch.equal(exported[KEY.removeprefix("unet.")], delta.tensors[KEY])
    assert torch.equal(exported[VALUE.removeprefix("unet.")], tiny_base.originals()[VALUE])
    assert torch.equal(tiny_base.tensors()[VALUE], applied.tensors[VALUE])
    assert isinstance(pipeline.scheduler, PNDMScheduler)
    assert pipeline.safety_checker is None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
