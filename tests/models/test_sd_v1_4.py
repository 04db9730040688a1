"""Stable Diffusion v1.4 as shipped: its configs, its tokenizer, and a random one of full size."""

import time
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from efface.models.base import architecture, load_base
from efface.models.loading import empty_components, random_components
from efface.models.text.text_encoding import last_subject_token, token_ids


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_configs_have_the_published_number_of_parameters() -> None:
    unet, vae, text_encoder = empty_components(architecture("sd-v1-4"))
    assert (count(unet), count(vae), count(text_encoder)) == (859_520_964, 83_653_863, 123_060_480)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("hello world", [3306, 1002]),
        ("Hello, World!", [3306, 267, 1002, 256]),
        ("a diagram", [320, 22697]),
        ("", []),
    ],
)
def test_the_tokenizer_gives_clips_ids(text: str, ids: list[int]) -> None:
    """Ids as published with CLIP and its users; 49406 begins, 49407 ends and pads."""
    tokenizer = CLIPTokenizer.from_pretrained(architecture("sd-v1-4") / "tokenizer", local_files_only=True)
    assert len(tokenizer) == 49_408
    padded = tokenizer(text, padding="max_length", max_length=77)["input_ids"]
    assert padded == [49406, *ids, *[49407] * (76 - len(ids))]


def test_random_weights_are_a_function_of_the_seed(tmp_path: Path, tiny_base_folder: Path) -> None:
    first, again, other = (random_components(tiny_base_folder, seed) for seed in (0, 0, 1))
    for one, two, three in zip(first, again, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters(), strict=True))


def test_random_norms_are_the_identity_and_the_rest_is_small(tiny_base_folder: Path) -> None:
    unet, _, text_encoder = random_components(tiny_base_folder, 0)
    assert torch.equal(unet.conv_norm_out.weight, torch.ones_like(unet.conv_norm_out.weight))
    assert torch.equal(unet.conv_in.bias, torch.zeros_like(unet.conv_in.bias))
    assert unet.mid_block.resnets[0].conv1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(text_encoder.embeddings.position_ids[0], torch.arange(77))


@pytest.mark.slow
def test_the_full_size_is_built_from_a_seed() -> None:
    start = time.perf_counter()
    base = load_base("sd-v1-4-random")
    print(f"\nbuilt in {time.perf_counter() - start:.1f} s")
    assert count(base.unet) == 859_520_964
    assert not any(tensor.is_meta for tensor in base.tensors().values())
    assert token_ids(base, ["a photo of a cat"])[0, 5] == 2368
    assert last_subject_token(base, ["a photo of a cat"]) == [5]
    with torch.no_grad():
        noise = base.unet(torch.randn(1, 4, 16, 16), 1, torch.randn(1, 77, 768)).sample
    assert noise.isfinite().all()
