"""Models that others edited become deltas: whole models, UNets in part, and LoRAs in each dialect of names."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from efface.errors import UserError
from efface.models.base import Base, load_base
from efface.models.delta import Delta
from efface.models.export import export
from efface.models.foreign_weights import read_foreign

KEY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
LAYER = KEY.removeprefix("unet.")
RANK = 2


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> Base:
    return load_base(str(tiny_base_folder))


@pytest.fixture
def edited(base: Base) -> dict[str, Tensor]:
    """One weight of the UNet, and one of the text encoder, with another value."""
    names = [f"{KEY}.weight", next(name for name in base.originals() if name.startswith("text_encoder."))]
    generator = torch.Generator().manual_seed(0)
    return {name: (value := base.originals()[name]) + torch.randn(value.shape, generator=generator) for name in names}


@pytest.fixture
def lora(base: Base) -> dict[str, Tensor]:
    d_out, d_in = base.originals()[f"{KEY}.weight"].shape
    generator = torch.Generator().manual_seed(1)
    return {
        "down": torch.randn(RANK, d_in, generator=generator),
        "up": torch.randn(d_out, RANK, generator=generator),
    }


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_diffusers_folder_differs_by_just_what_was_edited(
    base: Base, edited: dict[str, Tensor], tmp_path: Path
) -> None:
    export(base, Delta("weights", edited, {"base_id": base.fingerprint}), tmp_path / "model")
    kind, tensors = read_foreign(tmp_path / "model", base)
    assert kind == "weights" and same(tensors, edited)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_state_dict_of_the_unet_may_be_whole_or_a_part(
    base: Base, edited: dict[str, Tensor], tmp_path: Path, suffix: str, whole: bool
) -> None:
    unet = {name.removeprefix("unet."): value for name, value in base.originals().items() if name.startswith("unet.")}
    state = {**(unet if whole else {}), f"{LAYER}.weight": edited[f"{KEY}.weight"]}
    path = tmp_path / f"unet{suffix}"
    if suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save({"state_dict": state}, path)
    kind, tensors = read_foreign(path, base)
    assert kind == "weights" and same(tensors, {f"{KEY}.weight": edited[f"{KEY}.weight"]})


def dialect(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of one LoRA as a library names them."""
    flat = LAYER.replace(".", "_")
    module, layer = LAYER.rsplit(".", 1)
    names = {
        "peft": (f"base_model.model.{LAYER}.lora_A.weight", f"base_model.model.{LAYER}.lora_B.weight"),
        "peft with an adapter's name": (f"{LAYER}.lora_A.default.weight", f"{LAYER}.lora_B.default.weight"),
        "diffusers": (f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight"),
        "diffusers before 0.22": (f"unet.{LAYER}.lora.down.weight", f"unet.{LAYER}.lora.up.weight"),
        "attention processors": (
            f"{module}.processor.{layer}_lora.down.weight",
            f"{module}.processor.{layer}_lora.up.weight",
        ),
        "kohya": (f"lora_unet_{flat}.lora_down.weight", f"lora_unet_{flat}.lora_up.weight"),
    }[name]
    alpha = {f"lora_unet_{flat}.alpha": torch.tensor(1.0)} if name == "kohya" else {}
    return lambda lora: {names[0]: lora["down"], names[1]: lora["up"], **alpha}


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("peft", 1.0),
        ("peft with an adapter's name", 1.0),
        ("diffusers", 1.0),
        ("diffusers before 0.22", 1.0),
        ("attention processors", 1.0),
        ("kohya", 1 / RANK),
    ],
)
def test_a_lora_adds_alpha_over_rank_times_up_down(
    base: Base, lora: dict[str, Tensor], tmp_path: Path, name: str, scale: float
) -> None:
    save_file(dialect(name)(lora), tmp_path / "lora.safetensors")
    kind, tensors = read_foreign(tmp_path / "lora.safetensors", base)
    assert kind == "adapter"
    merged = Delta(kind, tensors, {"base_id": base.fingerprint}).edited(base)
    expected = base.originals()[f"{KEY}.weight"] + scale * lora["up"] @ lora["down"]
    assert merged.keys() == {f"{KEY}.weight"}
    torch.testing.assert_close(merged[f"{KEY}.weight"], expected)


def merged(path: Path, base: Base) -> Tensor:
    kind, tensors = read_foreign(path, base)
    return Delta(kind, tensors, {"base_id": base.fingerprint}).edited(base)[f"{KEY}.weight"]


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"lora_alpha": 8}, 8 / RANK),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / RANK**0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 3, "to_q": 5}}, 3 / RANK),
    ],
)
@pytest.mark.parametrize("place", ["folder", "file", "metadata"])
def test_alpha_is_read_from_beside_the_tensors(
    base: Base,
    lora: dict[str, Tensor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, object],
    scale: float,
    place: str,
) -> None:
    """Of peft in a file of its own, of diffusers in the metadata."""
    path = tmp_path / "adapter_model.safetensors"
    if place == "metadata":
        noted = {f"unet.{key}": value for key, value in settings.items()}
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(noted)}
        save_file(dialect("diffusers")(lora), path, metadata=metadata)
    else:
        save_file(dialect("peft")(lora), path)
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, **settings}))
    expected = base.originals()[f"{KEY}.weight"] + scale * lora["up"] @ lora["down"]
    torch.testing.assert_close(merged(tmp_path if place == "folder" else path, base), expected)
    assert not caplog.records


def test_an_alpha_that_is_written_nowhere_is_said_to_be_guessed(
    base: Base, lora: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(dialect("peft")(lora), tmp_path / "lora.safetensors")
    read_foreign(tmp_path / "lora.safetensors", base)
    assert "taken to be the rank" in caplog.text
    caplog.clear()
    save_file(dialect("kohya")(lora), tmp_path / "lora.safetensors")
    read_foreign(tmp_path / "lora.safetensors", base)
    assert not caplog.records


@pytest.mark.parametrize("text", ["[1]", "{", '{"lora_alpha": "8"}', "{}"])
def test_settings_of_a_lora_that_say_no_alpha_are_refused(
    base: Base, lora: dict[str, Tensor], tmp_path: Path, text: str
) -> None:
    save_file(dialect("peft")(lora), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match="LoRA"):
        read_foreign(tmp_path, base)


def test_what_is_no_edit_of_the_base_is_one_sentence(base: Base, tmp_path: Path, lora: dict[str, Tensor]) -> None:
    def refused(state: dict[str, Tensor]) -> str:
        path = tmp_path / "file.safetensors"
        save_file(state, path)
        with pytest.raises(UserError) as error:
            read_foreign(path, base)
        assert "\n" not in str(error.value)
        return str(error.value)

    weight = base.originals()[f"{KEY}.weight"].contiguous()
    assert "nothing was erased" in refused({f"{LAYER}.weight": weight.clone()})
    assert "does not have" in refused({"transformer.wte.weight": torch.ones(2)})
    assert "another shape" in refused({f"{LAYER}.weight": torch.ones(2, 2)})
    assert "not finite" in refused({f"{LAYER}.weight": weight * float("nan")})
    assert "lacks its up" in refused({f"{LAYER}.lora_A.weight": lora["down"]})
    kohya = dialect("kohya")(lora)
    assert "should be one" in refused({n: torch.ones(2) if n.endswith("alpha") else t for n, t in kohya.items()})
    assert "not finite" in refused({n: t / 0 if n.endswith("up.weight") else t for n, t in kohya.items()})
    assert "parts that base" in refused(
        {f"{LAYER}s.lora_A.weight": lora["down"], f"{LAYER}s.lora_B.weight": lora["up"]}
    )


def test_a_pickle_with_code_is_refused(base: Base, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return print, ("run",)

    torch.save({"x": Code()}, tmp_path / "unet.pt")
    with pytest.raises(UserError, match="could run code"):
        read_foreign(tmp_path / "unet.pt", base)


def test_a_model_that_predicts_another_quantity_is_no_edit(base: Base, tmp_path: Path) -> None:
    other = copy.copy(base)
    other.scheduler_config = {**base.scheduler_config, "prediction_type": "v_prediction"}
    export(other, None, tmp_path / "model")
    with pytest.raises(UserError, match="another quantity"):
        read_foreign(tmp_path / "model", base)
