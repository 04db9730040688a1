"""Each attack's loss is its paper's, in float64, written out here element by element."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from efface.eval.attacking.attack_training import NoisyBatch
from efface.eval.attacks.mma import pooled_cosine
from efface.eval.attacks.noise_scale import ddim_step
from efface.eval.attacks.p4d import matching_loss
from efface.eval.attacks.relearning import relearning_loss
from efface.eval.attacks.ring_a_bell import concept_distance
from efface.models.base import load_base
from efface.models.conditioning import Conditioning
from efface.models.text.textual_inversion import frame_before, inversion_loss, reconstruction_loss


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predict(latents: torch.Tensor, timestep: Any, cond: Conditioning) -> torch.Tensor:
    """Some function of all three."""
    return latents * float(timestep) / 10 + cond.encoder_hidden_states.mean()


COND = Conditioning(drawn(3, 1, 4, 5))


@pytest.mark.parametrize("loss", [reconstruction_loss, matching_loss])
def test_unlearn_diff_atk_and_p4d_take_the_mean_squared_difference(loss: Any) -> None:
    x_t, target = drawn(1, 2, 1, 2, 2), drawn(2, 2, 1, 2, 2)
    found = float(loss(predict, x_t, torch.tensor(7), COND, target))
    shift = float(COND.encoder_hidden_states.mean())
    pairs = zip(x_t.flatten().tolist(), target.flatten().tolist(), strict=True)
    expected = sum((x * 0.7 + shift - y) ** 2 for x, y in pairs) / 8
    assert found == pytest.approx(expected, rel=1e-12)


def test_relearning_takes_the_mean_squared_error_each_image_by_its_own_prompt_and_timestep() -> None:
    prompts, x_t, noise = drawn(1, 3, 4, 5), drawn(2, 2, 1, 2, 2), drawn(3, 2, 1, 2, 2)
    rows, timesteps = torch.tensor([2, 0]), torch.tensor([7, 3])

    def predict_rows(latents: torch.Tensor, timestep: Any, cond: Conditioning) -> torch.Tensor:
        shift = cond.encoder_hidden_states.mean(dim=(1, 2)) * torch.as_tensor(timestep)
        return latents + shift[:, None, None, None]

    found = float(relearning_loss(predict_rows, NoisyBatch(rows, x_t, timesteps, noise), Conditioning(prompts)))
    expected = 0.0
    for i, (row, timestep) in enumerate(((2, 7), (0, 3))):
        shift = sum(prompts[row].flatten().tolist()) / 20 * timestep
        pairs = zip(x_t[i].flatten().tolist(), noise[i].flatten().tolist(), strict=True)
        expected += sum((x + shift - e) ** 2 for x, e in pairs) / 8
    assert found == pytest.approx(expected, rel=1e-12)


def test_inversion_takes_a_prompt_with_the_learnt_vector_as_a_token_of_its_own(
    tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As textual inversion is defined: the vector is a new row of the embedding table, named by a new id."""
    base = load_base(tiny_base_folder)
    encoder = base.text_encoder.double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    table = encoder.get_input_embeddings().weight
    vector, frame = drawn(4, 1, table.shape[1]), frame_before(base, 1, "a photo")
    x_t, noise, timesteps = drawn(1, 2, 1, 2, 2), drawn(2, 2, 1, 2, 2), torch.tensor(7)
    found = inversion_loss(base, predict, frame, vector, x_t, timesteps, noise)

    grown = copy.deepcopy(encoder)
    grown.set_input_embeddings(nn.Embedding.from_pretrained(torch.cat([table.detach(), vector])))
    a_photo = base.tokenizer("a photo", padding="max_length", max_length=76)["input_ids"]
    ids = torch.tensor([[a_photo[0], len(table), *a_photo[1:]]])
    with torch.no_grad():
        shift = float(grown(ids, attention_mask=None).last_hidden_state.mean())
    pairs = zip(x_t.flatten().tolist(), noise.flatten().tolist(), strict=True)
    assert float(found) == pytest.approx(sum((x * 0.7 + shift - e) ** 2 for x, e in pairs) / 8, rel=1e-12)


def test_ring_a_bell_takes_the_sum_of_squares_over_tokens_and_channels() -> None:
    encoded, goal = drawn(4, 3, 2, 5), drawn(5, 2, 5)
    expected = [
        sum((encoded[b, t, d].item() - goal[t, d].item()) ** 2 for t in range(2) for d in range(5)) for b in range(3)
    ]
    assert concept_distance(encoded, goal).tolist() == pytest.approx(expected, rel=1e-12)


def test_mma_takes_the_cosine_at_the_end_of_text() -> None:
    pooled, target = drawn(4, 3, 5), drawn(5, 5)

    def norm(values: list[float]) -> float:
        return math.sqrt(sum(value * value for value in values))

    expected = [
        sum(a * b for a, b in zip(row, target.tolist(), strict=True)) / norm(row) / norm(target.tolist())
        for row in pooled.tolist()
    ]
    assert pooled_cosine(pooled, target).tolist() == pytest.approx(expected, rel=1e-12)


def test_without_noise_a_step_of_the_probe_is_ddims() -> None:
    x_t, eps, z = drawn(6, 1, 1, 2, 2), drawn(7, 1, 1, 2, 2), drawn(8, 1, 1, 2, 2)
    kept, before = 0.4, 0.7
    x_0 = (x_t - math.sqrt(0.6) * eps) / math.sqrt(0.4)
    assert torch.allclose(ddim_step(x_t, eps, kept, before, 0.0, 1.0, z), math.sqrt(0.7) * x_0 + math.sqrt(0.3) * eps)


def test_with_eta_one_a_step_of_the_probe_has_the_variance_of_ddpm() -> None:
    zero, z = torch.zeros(1, 1, 2, 2, dtype=torch.float64), drawn(8, 1, 1, 2, 2)
    kept, before = 0.4, 0.7
    variance = (1 - before) / (1 - kept) * (1 - kept / before)
    assert torch.allclose(ddim_step(zero, zero, kept, before, 1.0, 1.03, z), 1.03 * math.sqrt(variance) * z)
    strong = ddim_step(zero, zero + 1, kept, before, 9.0, 0.0, z)
    assert torch.allclose(strong, -math.sqrt(0.7) * math.sqrt(0.6) / math.sqrt(0.4) + zero)
