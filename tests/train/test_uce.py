"""UCE against the authors' two scripts, written out layer by layer and token by token with an explicit inverse."""

from typing import Any

import numpy as np
import pytest
import torch

from efface.concepts.concept import Concept, ConceptSet
from efface.models.base import Base
from efface.train.method import UnlearningTask, parse_config, preset_names
from efface.train.methods.uce import UCE

CAT = Concept(name="cat", kind="animal", phrase="a cat", aliases=("kitty",), anchor="dog")
DOG = Concept(name="dog", kind="animal", phrase="a good dog")
BIRD = Concept(name="bird", kind="animal", phrase="a bird", anchor="a sky", retained=("cat",))
ANIMALS = ConceptSet(name="animals", version=1, concepts=(CAT, DOG, BIRD))


def solve(base: Base, *concepts: Concept, **config: Any) -> dict[str, torch.Tensor]:
    return UCE(parse_config("uce", config)).solve(UnlearningTask(base, concepts, ANIMALS, seed=0))


def encode(base: Base, prompt: str) -> tuple[np.ndarray, int]:
    """The prompt's embedding (77, d) and the index of its last token before the end of text."""
    tokens = base.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        embedding = base.text_encoder(tokens.input_ids).last_hidden_state[0]
    return embedding.double().numpy(), int(tokens.attention_mask.sum()) - 2


def projections(base: Base) -> dict[str, np.ndarray]:
    return {
        f"unet.{name}.weight": module.weight.detach().double().numpy()
        for name, module in base.unet.named_modules()
        if "attn2" in name and name.endswith(("to_k", "to_v"))
    }


def written_out(
    base: Base,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    preserved: list[np.ndarray],
    ridge: float,
    preserve_scale: float,
) -> dict[str, np.ndarray]:
    """Equation 7 of each projection, from (key, guide key) pairs and preserved keys."""
    edited = {}
    for name, old in projections(base).items():
        left, right = ridge * old, ridge * np.eye(old.shape[1])
        for c, guide in pairs:
            left, right = left + np.outer(old @ guide, c), right + np.outer(c, c)
        for c in preserved:
            left, right = (
                left + preserve_scale * np.outer(old @ c, c),
                right + preserve_scale * np.outer(c, c),
            )
        edited[name] = left @ np.linalg.inv(right)
    return edited


def assert_same(solved: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> None:
    assert solved.keys() == expected.keys()
    for name, value in solved.items():
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-4, atol=1e-6)


def test_the_default_is_the_authors_newer_script_on_last_subject_tokens(tiny_base: Base) -> None:
    tokens = {text: encode(tiny_base, text) for text in ("a cat", "a good dog", "a bird")}
    last = {text: embedding[index] for text, (embedding, index) in tokens.items()}
    expected = written_out(
        tiny_base, [(last["a cat"], last["a good dog"])], [last["a good dog"], last["a bird"]], 0.5, 1.0
    )
    assert_same(solve(tiny_base, CAT), expected)


def test_all_tokens_is_the_authors_older_script(tiny_base: Base) -> None:
    # "a cat" ends before "a good dog" does, so its tail is cut at the end of the window
    (cat, cat_last), (dog, dog_last) = encode(tiny_base, "a cat"), encode(tiny_base, "a good dog")
    count = 77 - max(cat_last, dog_last)
    assert cat_last < dog_last
    pairs = list(zip(cat[cat_last : cat_last + count], dog[dog_last : dog_last + count], strict=True))
    preserved = [row for text in ("", "a good dog", "a bird") for row in encode(tiny_base, text)[0]]
    expected = written_out(tiny_base, pairs, preserved, 0.5, max(0.1, 1 / 3))
    assert_same(solve(tiny_base, CAT, tokens="all", preserve_scale=None), expected)


def test_several_concepts_are_one_solve_and_none_of_them_is_preserved(tiny_base: Base) -> None:
    cat, dog, bird, sky = (
        (lambda found: found[0][found[1]])(encode(tiny_base, text))
        for text in ("a cat", "a good dog", "a bird", "a sky")
    )
    # the bird retains the cat, which is to be forgotten too; the cat retains the dog
    expected = written_out(tiny_base, [(cat, dog), (bird, sky)], [dog], 0.5, 1.0)
    assert_same(solve(tiny_base, CAT, BIRD), expected)


def test_statistics_of_two_concepts_are_the_sum_of_theirs(tiny_base: Base) -> None:
    method = UCE(parse_config("uce", {"preserve": "none"}))
    tasks = [UnlearningTask(tiny_base, concepts, ANIMALS, seed=0) for concepts in ((CAT, BIRD), (CAT,), (BIRD,))]
    both, first, second = (method.sums(*method.embedded(task, method.encoded(task))) for task in tasks)
    torch.testing.assert_close((first + second).value_key, both.value_key)
    torch.testing.assert_close((first + second).key_key, both.key_key)


def test_an_empty_guide_is_read_at_its_end_of_text_and_not_at_the_token_all_prompts_share(
    tiny_base: Base,
) -> None:
    (cat, last), (empty, _) = encode(tiny_base, "a cat"), encode(tiny_base, "")
    assert tiny_base.tokenizer("").input_ids[1] == tiny_base.tokenizer.eos_token_id
    expected = written_out(tiny_base, [(cat[last], empty[1])], [], 0.5, 1.0)
    assert_same(solve(tiny_base, CAT, guide="", preserve="none"), expected)
    assert_same(solve(tiny_base, CAT.model_copy(update={"anchor": None}), preserve="none"), expected)


def test_aliases_and_templates_are_further_edits(tiny_base: Base) -> None:
    def last(text: str) -> np.ndarray:
        embedding, index = encode(tiny_base, text)
        return embedding[index]

    pairs = [
        (last(template.format(name)), last(template.format("a good dog")))
        for name in ("a cat", "kitty")
        for template in ("{}", "photo of {} outside")
    ]
    solved = solve(tiny_base, CAT, erase_aliases=True, templates=["{}", "photo of {} outside"], preserve=["a tree"])
    assert_same(solved, written_out(tiny_base, pairs, [last("a tree")], 0.5, 1.0))


def test_a_nearly_free_edit_gives_the_concept_the_keys_and_values_of_its_anchor(tiny_base: Base) -> None:
    (cat, cat_last), (dog, dog_last) = encode(tiny_base, "a cat"), encode(tiny_base, "a good dog")
    solved = solve(tiny_base, CAT, ridge=1e-9)
    for name, old in projections(tiny_base).items():
        new = solved[name].double().numpy()
        np.testing.assert_allclose(new @ cat[cat_last], old @ dog[dog_last], atol=1e-4)
        np.testing.assert_allclose(new @ dog[dog_last], old @ dog[dog_last], atol=1e-4)


@pytest.mark.parametrize("preset", preset_names("uce"))
def test_every_shipped_preset_is_a_config(preset: str) -> None:
    assert parse_config("uce", {}, preset) != parse_config("uce", {})


def test_a_template_without_a_place_is_refused() -> None:
    with pytest.raises(Exception, match="every template should hold"):
        parse_config("uce", {"templates": ["a photo"]})


def test_the_tensor_technique_takes_the_concepts_own_direction_out_of_the_guides_values(tiny_base: Base) -> None:
    """v = W g - <u, W g> u, u = W c / ||W c||, layer by layer."""
    (cat, cat_last), (dog, dog_last) = encode(tiny_base, "a cat"), encode(tiny_base, "a good dog")
    c, guide = cat[cat_last], dog[dog_last]
    solved = solve(tiny_base, CAT, technique="tensor", preserve="none")
    for name, old in projections(tiny_base).items():
        direction = old @ c / np.linalg.norm(old @ c)
        value = old @ guide - (direction @ (old @ guide)) * direction
        expected = (0.5 * old + np.outer(value, c)) @ np.linalg.inv(0.5 * np.eye(len(c)) + np.outer(c, c))
        np.testing.assert_allclose(solved[name].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_bare_names_guides_by_kind_and_the_start_of_text_are_what_the_authors_take(tiny_base: Base) -> None:
    (cat, cat_last), (empty, _) = encode(tiny_base, "cat"), encode(tiny_base, "")
    config = {"templates": ["{name}"], "preserve": "none", "guide": "a dog"}
    expected = written_out(tiny_base, [(cat[cat_last], empty[0])], [], 0.5, 1.0)
    assert_same(solve(tiny_base, CAT, **config, guides={"animal": ""}, empty_prompt="start"), expected)
    dog, dog_last = encode(tiny_base, "a dog")
    expected = written_out(tiny_base, [(cat[cat_last], dog[dog_last])], [], 0.5, 1.0)
    assert_same(solve(tiny_base, CAT, **config, guides={"style": ""}), expected)
