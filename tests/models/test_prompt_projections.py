"""Prompts are projected once for all steps of a batch, and every prediction keeps its bits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efface.models.adapters import add_adapters
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.prompt_projections import prompts_projected_once
from efface.models.text.text_encoding import encode_prompts

STEPS = (900, 500, 100)


def predictions(predict: Any, prompts: list[Conditioning]) -> list[Tensor]:
    """Of one step after another, the prompts made anew for each as guidance does."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return [predict(latents, step, Conditioning.cat(list(prompts))) for step in STEPS]


def projections(base: Base) -> dict[str, nn.Module]:
    return {name: m for name, m in base.unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))}


def counting(monkeypatch: pytest.MonkeyPatch, base: Base) -> list[int]:
    """What is asked of the matrix product of a projection, one entry a call."""
    calls: list[int] = []
    weights = {id(layer.weight) for layer in projections(base).values()}
    linear = nn.functional.linear

    def count(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) in weights:
            calls.append(1)
        return linear(inputs, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", count)
    return calls


def test_every_prediction_keeps_its_bits_and_a_projection_is_computed_once(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [encode_prompts(tiny_base, [text]) for text in ("", "a red cat")]
    calls = counting(monkeypatch, tiny_base)
    plain = predictions(tiny_base.denoiser, prompts)
    assert len(calls) == len(STEPS) * len(projections(tiny_base))
    calls.clear()
    with prompts_projected_once(tiny_base.denoiser) as predict:
        found = predictions(predict, prompts)
    assert len(calls) == len(projections(tiny_base))
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_prompts_that_change_are_projected_again(tiny_base: Base) -> None:
    cat, dog, empty = (encode_prompts(tiny_base, [text]) for text in ("a cat", "a dog", ""))
    batches = [[empty, cat], [empty, dog], [empty, cat]]
    plain = [predictions(tiny_base.denoiser, batch) for batch in batches]
    with prompts_projected_once(tiny_base.denoiser) as predict:
        found = [predictions(predict, batch) for batch in batches]
    for before, after in zip(plain, found, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_what_hooks_add_to_a_projection_is_added_at_each_step(tiny_base: Base) -> None:
    prompts = [encode_prompts(tiny_base, [text]) for text in ("", "a red cat")]
    names = [f"unet.{name}" for name in projections(tiny_base)]
    adapters = add_adapters(tiny_base.modules, names, 2, 2.0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for adapter in adapters.layers.values():
            adapter.up.normal_(generator=torch.Generator().manual_seed(2))
    step = [0.0]
    for layer in projections(tiny_base).values():
        layer.register_forward_hook(lambda module, inputs, output: output + step[0])

    def moving(predict: Any) -> Any:
        def call(*arguments: Any) -> Tensor:
            step[0] += 0.1
            found: Tensor = predict(*arguments)
            return found

        return call

    plain = predictions(moving(tiny_base.denoiser), prompts)
    step[0] = 0.0
    with prompts_projected_once(tiny_base.denoiser) as predict:
        found = predictions(moving(predict), prompts)
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_nothing_is_left_behind_and_gradients_flow_meanwhile(tiny_base: Base) -> None:
    before = {name: (type(layer), set(vars(layer))) for name, layer in projections(tiny_base).items()}
    prompts = encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states.requires_grad_()
    with prompts_projected_once(tiny_base.denoiser) as predict:
        predict(torch.zeros(1, 4, 8, 8), 500, Conditioning(prompts)).sum().backward()
        predictions(predict, [Conditioning(prompts.detach())] * 2)
    assert prompts.grad is not None and prompts.grad.abs().sum() > 0
    assert {name: (type(layer), set(vars(layer))) for name, layer in projections(tiny_base).items()} == before
