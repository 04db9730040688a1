"""AdaVD against the paper's projection, derived in numpy and fp64, and against numbers of the authors' code."""

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.hooks.adavd import AdaVD, AdaVDConfig, AdaVDSettings, lost, span
from efface.models.text.text_encoding import encode_prompts, last_subject_token

CAT = ("a cat",)


def shift(cosine: float, steepness: float = 100, centre: float = 0.93) -> float:
    return float(2 / (1 + np.exp(-steepness * (cosine - centre))))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_one_phrase_is_taken_out_as_the_paper_prints_it() -> None:
    target = draw(1, 1, 6)
    values = torch.cat([target + 0.2 * draw(1, 3, 6, seed=1), draw(1, 2, 6, seed=2)], dim=1)  # three near it, two not
    found = lost(values, span(target), AdaVDSettings())
    v_t = target[0, 0].double().numpy()
    for value, gone in zip(values[0].double().numpy(), found[0].double().numpy(), strict=True):
        expected = shift(cosine(v_t, value)) * (v_t @ value) / (v_t @ v_t) * v_t
        np.testing.assert_allclose(gone, expected, atol=1e-5)


def test_without_shift_what_is_left_is_orthogonal_to_every_phrase() -> None:
    targets, values = draw(1, 3, 8), draw(2, 5, 8, seed=1)
    left = values - lost(values, span(targets), AdaVDSettings(shift=False))
    assert (left @ targets[0].T).abs().max() < 1e-5


def test_of_several_phrases_each_has_its_own_shift_before_they_are_made_orthogonal() -> None:
    targets, value = draw(3, 8).double().numpy(), draw(8, seed=1).double().numpy()
    value = value + 2 * targets[1]
    q = [targets[0]]
    for v in targets[1:]:
        q.append(v - sum((v @ o) / (o @ o) * o for o in q))
    expected = np.zeros(8)
    for o in q:  # q_i as a sum of the phrases, each of them times its shift
        weights = np.linalg.lstsq(targets.T, o, rcond=None)[0]
        shifted = sum(w * shift(cosine(t, value)) * t for w, t in zip(weights, targets, strict=True))
        expected += (value @ o) / (o @ o) * shifted
    phrases = span(torch.tensor(targets)[None].float())
    found = lost(torch.tensor(value)[None, None].float(), phrases, AdaVDSettings())
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-5)


def test_a_phrase_that_says_the_same_twice_counts_once() -> None:
    target, values = draw(1, 1, 6), draw(1, 4, 6, seed=1)
    once, twice = (lost(values, span(target.expand(1, n, 6)), AdaVDSettings(shift=False)) for n in (1, 2))
    torch.testing.assert_close(once, twice)


def first_value_projection(base: Base) -> torch.nn.Module:
    return next(module for name, module in base.unet.named_modules() if name.endswith("attn2.to_v"))


@torch.no_grad()
@pytest.mark.parametrize("pair", [True, False])
def test_the_values_of_a_pass_are_decomposed_and_the_first_token_is_left_alone(tiny_base: Base, pair: bool) -> None:
    prompts = encode_prompts(tiny_base, ["", "a red cat"]).encoder_hidden_states
    projection, seen = first_value_projection(tiny_base), []
    before = projection(prompts).double().numpy()
    hook = AdaVD(tiny_base, AdaVDConfig(prompts=CAT, pair=pair, steepness=5, centre=0.3))
    with hook.attached(tiny_base.denoiser):
        hook.paired = pair
        seen.append(projection(prompts).double().numpy())
    assert np.array_equal(projection(prompts).double().numpy(), before), "the denoiser is left as it was"
    target = encode_prompts(tiny_base, list(CAT)).encoder_hidden_states[0, last_subject_token(tiny_base, CAT)[0]]
    v_t = projection(target[None])[0].double().numpy()
    after = before.copy()
    for position in range(1, 77):
        if pair:  # the values of the empty prompt and of the prompt are one vector
            both, t = before[:, position].ravel(), np.concatenate([before[0, position], v_t])
            both = both - shift(cosine(t, both), 5, 0.3) * (t @ both) / (t @ t) * t
            after[:, position] = both.reshape(2, -1)
        else:
            for row in after:
                along = (v_t @ row[position]) / (v_t @ v_t)
                row[position] -= shift(cosine(v_t, row[position]), 5, 0.3) * along * v_t
    np.testing.assert_allclose(seen[0], after, atol=2e-5)
    assert np.array_equal(seen[0][:, 0], before[:, 0]) and np.abs(after - before).max() > 1e-3


@torch.no_grad()
def test_guidance_tells_the_hook_which_rows_belong_together(tiny_base: Base) -> None:
    hook, seen = AdaVD(tiny_base, AdaVDConfig(prompts=CAT)), []

    def predict(latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
        seen.append(hook.paired)
        return latents

    one = encode_prompts(tiny_base, ["a dog"])
    for scale in (7.5, 1.0):
        hook.guidance(["a dog"])(predict, torch.zeros(1, 4, 8, 8), 1, one, one, scale)
    assert seen == [True, False] and not hook.paired
