"""FMN against its paper: which probabilities count, their norm, and what weights learn from it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from efface.concepts.concept import Concept, ConceptSet
from efface.models.adversary import Adversary
from efface.models.attention_maps import CrossAttentionMaps
from efface.models.base import Base
from efface.models.text.text_encoding import encode_prompts, subject_tokens, token_ids
from efface.models.text.textual_inversion import frame_after
from efface.train.data.latents import noised
from efface.train.data.learnt_tokens import initial_tokens, invert
from efface.train.method import UnlearningTask, get_method, parse_config
from efface.train.methods.fmn import resteering_loss
from efface.train.seeds import generator


def test_the_loss_is_the_norm_of_all_probabilities_at_the_concepts_tokens() -> None:
    """Two layers of one head and of two, of three tokens the middle one: 3, 4, 12 and 84 make 85."""
    first = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    first[0, 0, :, 1] = torch.tensor([3.0, 4.0])
    first[0, 0, :, 0] = 100.0  # tokens that do not count
    second = torch.zeros(1, 2, 1, 3, dtype=torch.float64)
    second[0, :, 0, 1] = torch.tensor([12.0, 84.0])
    concept = torch.tensor([[False, True, False]])
    assert resteering_loss([first, second], concept).item() == pytest.approx(85.0, abs=1e-12)


def test_each_row_of_a_batch_has_positions_of_its_own() -> None:
    maps = torch.arange(12, dtype=torch.float64).reshape(2, 1, 2, 3)
    concept = torch.tensor([[True, False, False], [False, False, True]])
    by_hand = (0**2 + 3**2 + 8**2 + 11**2) ** 0.5
    assert resteering_loss([maps], concept).item() == pytest.approx(by_hand, abs=1e-12)


def test_the_loss_at_work_is_the_norm_of_the_students_own_probabilities(prepare: Any, shaken: Any) -> None:
    fmn, student = prepare("fmn", batch_size=2, pooler="eos")
    shaken(student)
    batch = fmn.batch(0)
    maps = CrossAttentionMaps(student)
    with maps:
        student(batch.latents, batch.timesteps, batch.conditioning)
    maps.close()
    total = 0.0
    for probabilities in maps.by_layer.values():
        for row, positions in zip(probabilities.double(), batch.concept, strict=True):
            total += sum(float(row[:, :, token].square().sum()) for token in positions.nonzero()[:, 0].tolist())
    assert float(fmn.loss(student, batch)) == pytest.approx(total**0.5, rel=1e-6)


@pytest.mark.parametrize(("pooler", "ends"), [("none", 0), ("eos", 1), ("all", 77)])
def test_positions_are_those_of_the_words_and_of_the_end_tokens_asked_for(
    pooler: str, ends: int, prepare: Any, tiny_base: Base
) -> None:
    fmn, _ = prepare("fmn", pooler=pooler)
    found = fmn.batch(0).concept[0].nonzero()[:, 0].tolist()
    ids = token_ids(tiny_base, ["a photo of a cat"])[0]
    assert found[:3] == subject_tokens(tiny_base, "a photo of a cat", "cat")
    assert [tiny_base.tokenizer.convert_ids_to_tokens(int(ids[place])) for place in found[:3]] == ["c", "a", "t</w>"]
    end = int((ids == tiny_base.tokenizer.eos_token_id).nonzero()[0])
    assert found[3:] == list(range(end, end + min(ends, 77 - end)))


@pytest.mark.parametrize(
    ("kind", "phrase", "prompt"),
    [("animal", "a cat", "a photo of a cat"), ("style", "a drawing of a cat", "a photo in the style of cat")],
)
def test_the_templates_are_the_authors(kind: Any, phrase: str, prompt: str, prepare: Any, tiny_base: Base) -> None:
    own = ConceptSet(name="own", version=1, concepts=(Concept(name="cat", kind=kind, phrase=phrase),))
    fmn = get_method("fmn")(parse_config("fmn", {"images": 0, "pooler": "none"}))
    fmn.prepare(UnlearningTask(tiny_base, own.concepts, own, 0), tiny_base.denoiser.copy())  # type: ignore[attr-defined]
    batch = fmn.batch(0)  # type: ignore[attr-defined]
    assert torch.equal(
        batch.conditioning.encoder_hidden_states, encode_prompts(tiny_base, [prompt]).encoder_hidden_states
    )
    assert int(batch.concept.sum()) == 3


def test_with_an_inversion_the_concept_is_its_learnt_tokens(prepare: Any, tiny_base: Base) -> None:
    fmn, student = prepare("fmn", pooler="eos", inversion_steps=3, inversion_tokens=2)
    batch = fmn.batch(0)
    assert batch.concept[0].nonzero()[:, 0].tolist() == [9, 10, 11]  # BOS, "a photo of", two tokens, the end
    plain, _ = prepare("fmn", pooler="eos")
    words = plain.batch(0).conditioning.encoder_hidden_states
    assert torch.equal(batch.conditioning.encoder_hidden_states[:, :9], words[:, :9])
    assert not torch.allclose(batch.conditioning.encoder_hidden_states[:, 9], words[:, 9])
    fmn.loss(student, batch)


def test_an_inversion_learns_what_the_images_are_and_goes_to_the_tables_norm(prepare: Any, tiny_base: Base) -> None:
    fmn, _ = prepare("fmn")
    images, frame = fmn.data[0].images, frame_after(tiny_base, 4, "a photo of")

    @torch.no_grad()
    def error(learnt: Tensor) -> float:
        conditioning = frame.encode(tiny_base, learnt)
        scheduler = fmn.scheduler
        samples = [noised(images, [index % 2], scheduler, generator(9, index)) for index in range(16)]
        errors = [tiny_base.denoiser(one.latents, one.timesteps, conditioning) - one.truth for one in samples]
        return float(torch.stack([each.square().mean() for each in errors]).mean())

    def inverted(learning_rate: float) -> Tensor:
        adversary = Adversary(start, learning_rate, 0.1, rule="adamw")
        return invert(tiny_base, tiny_base.denoiser, images, [frame], adversary, 25, 0, "cat", norm_share=0.1)

    start = initial_tokens(tiny_base, 4, "cat", 0)
    table = tiny_base.text_encoder.get_input_embeddings().weight
    assert torch.equal(start[:3], table[token_ids(tiny_base, ["cat"])[0, 1:4]])
    assert error(inverted(0.05)) < error(start)
    # without learning a token's norm goes a tenth of the way in each step
    own, still = table.norm(dim=1).mean(), inverted(1e-12)
    torch.testing.assert_close(still.norm(dim=1), own + 0.9**25 * (start.norm(dim=1) - own), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_images_there_is_noise_of_the_timesteps_scale_alone(prepare: Any, alphas_cumprod: Tensor) -> None:
    fmn, _ = prepare("fmn", images=0, batch_size=2)
    batch = fmn.batch(3)
    scale = (1 - alphas_cumprod[batch.timesteps]).sqrt()[:, None, None, None]
    assert abs(float((batch.latents / scale).std()) - 1) < 0.2


@torch.no_grad()
def test_images_are_noised_as_the_forward_process_says(prepare: Any, alphas_cumprod: Tensor) -> None:
    fmn, _ = prepare("fmn")
    images = fmn.data[0].images
    sample = noised(images, [1, 0], fmn.scheduler, generator(0, "any"))
    kept = alphas_cumprod[sample.timesteps][:, None, None, None]
    clean = (sample.latents - (1 - kept).sqrt() * sample.truth) / kept.sqrt()
    drawn = (clean / images.scaling_factor - images.mean[[1, 0]]) / images.std[[1, 0]]
    assert drawn.isfinite().all() and drawn.abs().max() < 6


def test_less_attention_to_the_concept_is_learnt(prepare: Any, tiny_base: Base) -> None:
    fmn, student = prepare("fmn", pooler="none")
    trained = [value.requires_grad_(True) for value in fmn.trained(student).values()]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    batch = fmn.batch(0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = fmn.loss(student, batch)
        loss.backward()
        assert all(value.grad is not None for value in trained)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert not encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states.requires_grad
