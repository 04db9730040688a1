"""MACE: its three stages against sums written out sentence by sentence, its loss by hand, and its masks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from written_out import ANIMALS, BIRD, CAT, encode, projections

from efface.concepts.concept import Concept
from efface.models.base import Base
from efface.models.concept_adapters import ConceptAdapters
from efface.models.text.text_encoding import encode_prompts
from efface.train.data.concept_masks import attention_masks, detector_masks
from efface.train.data.concept_sentences import sentences, shared_positions
from efface.train.data.latents import Posterior
from efface.train.data.timesteps import importance
from efface.train.method import UnlearningTask, parse_config
from efface.train.methods.mace import MACE, attention_loss

TEMPLATES = ("see {} run", "{}")
CONFIG: dict[str, Any] = {
    "templates": {"animal": TEMPLATES},
    "captions": 2,
    "images": 2,
    "image_steps": 2,
    "masks": "attention",
    "ridge": 0.3,
    "general_weight": 1.5,
    "retained_weight": 0.7,
    "general_captions": ("a harbour", "two horses"),
}


def prepared(base: Base, *concepts: Concept, **config: Any) -> tuple[MACE, Any]:
    method = MACE(parse_config("mace", {**CONFIG, **config}))
    student = base.denoiser.copy()
    method.prepare(UnlearningTask(base, concepts, ANIMALS, seed=0), student)
    return method, student


def kept(base: Base) -> list[tuple[float, np.ndarray]]:
    """Weights and keys of all that stays when cat and bird go."""
    general = [(1.5 / 2, encode(base, text)[0]) for text in CONFIG["general_captions"]]
    return general + [(0.7, encode(base, text)[0]) for text in ("a good dog", "some fish")]


def test_refinement_gives_all_other_words_what_they_have_beside_the_anchor(tiny_base: Base) -> None:
    _, student = prepared(tiny_base, CAT, BIRD)
    refined = {name: value for name, value in student.modules["unet"].named_parameters()}
    pairs = []
    for phrase, anchor in (("a cat", "a good dog"), ("a bird", "a sky")):
        for template in TEMPLATES:
            (own, last), (other, other_last) = (encode(tiny_base, template.format(text)) for text in (phrase, anchor))
            # the tiny tokenizer reads single letters: "see a cat run" and "see a good dog run" share 1 + 4 in front
            # (start, s, e, e, a) and " run" behind; "a cat" and "a good dog" the start and the "a"
            front, behind = (5, 3) if template == TEMPLATES[0] else (2, 0)
            tail = behind + 77 - max(last, other_last) - 1
            starts = last + 1 - behind, other_last + 1 - behind
            pairs += [(own[i], other[i]) for i in range(front)]
            pairs += [(own[starts[0] + i], other[starts[1] + i]) for i in range(tail)]
    for name, old in projections(tiny_base, "to_k", "to_v").items():
        left, right = 0.3 * old, 0.3 * np.eye(old.shape[1])
        for c, target in pairs:
            left, right = left + np.outer(old @ target, c), right + np.outer(c, c)
        for weight, embedding in kept(tiny_base):
            left, right = left + weight * old @ embedding.T @ embedding, right + weight * embedding.T @ embedding
        found = refined[name.removeprefix("unet.")].detach().numpy()
        np.testing.assert_allclose(found, left @ np.linalg.inv(right), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2])
def test_fusion_gives_every_sentence_what_its_adapter_gives_it(rank: int, tiny_base: Base) -> None:
    method, student = prepared(tiny_base, CAT, BIRD, rank=rank)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in method.trained(student).values():
            value.copy_(torch.randn(value.shape, generator=rng))
    fused = method.saved(student)
    refined = {f"unet.{name}": value for name, value in student.modules["unet"].named_parameters()}
    for name, old in projections(tiny_base, "to_k", "to_v").items():
        start = refined[name].detach().double().numpy()
        layer = method.adapters.layers[name]
        left, right = 0.3 * start, 0.3 * np.eye(old.shape[1])
        for i, phrase in enumerate(("a cat", "a bird")):
            own = slice(i * rank, (i + 1) * rank)
            change = layer.up.detach().double().numpy()[:, own] @ layer.down.detach().double().numpy()[own]
            for template in TEMPLATES:
                keys = encode(tiny_base, template.format(phrase))[0]
                left, right = left + (start + change) @ keys.T @ keys, right + keys.T @ keys
        for weight, embedding in kept(tiny_base):
            left, right = left + weight * old @ embedding.T @ embedding, right + weight * embedding.T @ embedding
        np.testing.assert_allclose(fused[name].numpy(), left @ np.linalg.inv(right), rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_norm_of_attention_in_the_mask_to_the_concept_summed_over_layers() -> None:
    large, small = torch.zeros(1, 2, 16, 3), torch.zeros(1, 2, 4, 3)
    large[0, 0, 5, 1], large[0, 1, 0, 1], large[0, 1, 5, 2] = 3.0, 7.0, 9.0  # within, outside, another token
    small[0, 1, 0, 1], small[0, 1, 3, 1] = 4.0, 8.0  # within, outside
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 1] = mask[0, 0, 0] = True
    large[0, 1, 0, 1] = 0.0
    positions = torch.tensor([[False, True, False]])
    assert attention_loss([large, small], positions, mask) == pytest.approx(3 + 4)
    both = [torch.cat([maps, 2 * maps]) for maps in (large, small)]
    assert attention_loss(both, positions.expand(2, -1), mask.expand(2, -1, -1)) == pytest.approx(1.5 * 7)


def test_timesteps_are_drawn_as_the_paper_says() -> None:
    t = np.arange(1000)
    expected = 1 / (1 + np.exp(-0.05 * (t - 200))) - 1 / (1 + np.exp(-0.05 * (t - 400)))
    np.testing.assert_allclose(importance(1000).numpy(), expected, atol=1e-6)


def test_shared_positions_are_the_common_beginning_and_end_with_the_padding() -> None:
    # start, a, cat, runs, end, 3 x padding    start, a, good, dog, runs, end, 2 x padding
    own, other = shared_positions([0, 1, 5, 2, 9, 9, 9, 9], [0, 1, 6, 7, 2, 9, 9, 9], end=4, other_end=5)
    assert own == [0, 1, 3, 4, 5, 6] and other == [0, 1, 4, 5, 6, 7]


def test_the_concepts_tokens_are_found_in_every_sentence(tiny_base: Base) -> None:
    found = sentences(tiny_base, CAT, ANIMALS, {"animal": TEMPLATES}, 2)
    # letters: start s e e a c a t r u n end
    assert found.positions[0].nonzero().flatten().tolist() == [5, 6, 7]
    assert found.concept_tokens("eos")[0].nonzero().flatten().tolist() == [5, 6, 7, 11]
    assert found.concept_tokens("all")[0].sum() == 3 + 77 - 11


def test_an_adapter_acts_for_its_concept_alone_and_gets_no_gradient_of_another(tiny_base: Base) -> None:
    student = tiny_base.denoiser.copy()
    name = next(iter(projections(tiny_base, "to_k")))
    adapters = ConceptAdapters(student, [name], 2, 1, torch.Generator().manual_seed(0))
    (adapter,) = adapters.layers.values()
    with torch.no_grad():
        adapter.up.copy_(torch.randn(adapter.up.shape))
    layer = student.modules["unet"].get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
    keys = torch.randn(1, 3, layer.in_features)
    for concept, change in enumerate(adapters.changes(name)):
        adapters.active = concept
        torch.testing.assert_close(layer(keys), keys @ (layer.weight + change.float()).T)
        adapter.down.grad = None
        layer(keys).square().sum().backward()
        assert adapter.down.grad is not None
        assert (adapter.down.grad.norm(dim=1) > 0).tolist() == [concept == 0, concept == 1]
    adapters.active = None
    assert torch.equal(layer(keys), keys @ layer.weight.T)


def test_pixels_that_attend_to_the_concept_are_the_mask(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Posterior(torch.randn(2, 4, 8, 8), torch.zeros(2, 4, 8, 8), 0.2)
    positions = torch.zeros(77, dtype=torch.bool)
    positions[3] = True
    masks = attention_masks(tiny_base, images, encode_prompts(tiny_base, ["a cat"]), positions)
    assert masks.shape == (2, 8, 8) and masks.dtype == torch.bool
    assert all(0 < mask.sum() < 64 for mask in masks)
    assert not any(module._forward_hooks for module in tiny_base.unet.modules())


def test_a_detectors_best_box_is_segmented_and_an_image_without_one_counts_as_a_whole() -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[1] = 9
    boxes: list[tuple[float, list[float]]] = [(0.4, [0, 0, 8, 8]), (0.9, [0, 0, 4, 8])]

    def segment(image: np.ndarray, box: list[float]) -> np.ndarray:
        mask = np.zeros(image.shape[:2], bool)
        mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
        return mask

    detect: Callable[[np.ndarray], Any] = lambda image: [] if image.any() else boxes  # noqa: E731
    masks = detector_masks(images, detect, segment, (4, 4))
    assert masks[0].tolist() == [[True, True, False, False]] * 4 and masks[1].all()


def test_a_step_is_of_every_concept_and_of_its_own_sentences(tiny_base: Base) -> None:
    method, student = prepared(tiny_base, CAT, BIRD)
    assert method.config.gradient_accumulation_steps == 2
    assert [method.batch(index).concept for index in range(4)] == [0, 1, 0, 1]
    batch = method.batch(1)
    own = method.data[1].sentences.conditioning.encoder_hidden_states
    assert any(torch.equal(batch.conditioning.encoder_hidden_states[0], row) for row in own)
    assert method.loss(student, batch).item() > 0


def test_masks_that_are_not_the_authors_are_named_in_what_was_found(tiny_base: Base) -> None:
    method, _ = prepared(tiny_base, CAT, masks="attention")
    assert method.findings == {"variant": "masks: attention, not the authors' detector and segmenter"}
