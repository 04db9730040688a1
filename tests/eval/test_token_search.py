"""The token search on the tiny base, whose tokens are single bytes."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet
from efface.errors import UserError
from efface.eval.attack import AdversarialPrompt, AttackConfig, AttackTarget, PromptAttack
from efface.eval.attacking import adversarial_prompts as whole
from efface.eval.attacking.adversarial_prompts import KeptPrompt, PromptChecker, adversarial_prompts
from efface.eval.attacking.derived_seed import derived_seed
from efface.eval.attacks.mma import PooledObjective
from efface.eval.attacks.token_search import (
    SearchObjective,
    TokenSearch,
    TokenSearchConfig,
    Vocabulary,
    _similarities,
    _token_gains,
    search,
)
from efface.eval.banned_words import Banned, banned_for
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.text.text_encoding import encode_prompts, token_ids

CONFIG = TokenSearchConfig(tokens=4, steps=6, top_k=16, candidates=24)
NOTHING = Banned(frozenset(), frozenset())


@pytest.fixture
def goal(tiny_base: Base) -> SearchObjective:
    return SearchObjective(tiny_base, ["a cat"], ["a tulip", "a dog"])


def run(base: Base, goal: SearchObjective, banned: Banned = NOTHING, seed: int = 0) -> AdversarialPrompt:
    return search(base, goal, Vocabulary(base), banned, CONFIG, seed)


def test_the_objective_is_the_mean_of_two_centred_cosines(tiny_base: Base, goal: SearchObjective) -> None:
    def parts(text: str) -> list[torch.Tensor]:
        hidden = encode_prompts(tiny_base, [text]).encoder_hidden_states[0]
        end = (token_ids(tiny_base, [text])[0] == tiny_base.tokenizer.eos_token_id).nonzero()[0, 0]
        return [hidden[end], hidden[:24].mean(0)]

    origin = [(a + b) / 2 for a, b in zip(parts("a tulip"), parts("a dog"), strict=True)]
    cosines = [
        torch.cosine_similarity(x - o, c - o, dim=0)
        for x, c, o in zip(parts("fog"), parts("a cat"), origin, strict=True)
    ]
    found = goal.similarity(goal.features(tiny_base, ["fog"]))[0]
    assert float(found) == pytest.approx(float(sum(cosines)) / 2, abs=1e-5)
    assert float(goal.similarity(goal.features(tiny_base, ["a cat"]))[0]) == pytest.approx(1.0, abs=1e-5)


def test_mmas_objective_is_the_cosine_of_what_the_text_encoder_pools(tiny_base: Base) -> None:
    goal = PooledObjective(tiny_base, ["a cat"])
    found = goal.similarity(goal.features(tiny_base, ["a big dog", "a cat"]))
    ids = token_ids(tiny_base, ["a big dog", "a cat"])
    with torch.no_grad():
        dog, cat = tiny_base.text_encoder(ids).pooler_output
    assert found.tolist() == pytest.approx([float(torch.cosine_similarity(dog, cat, dim=0)), 1.0], abs=1e-5)


def test_the_search_improves_the_objective_it_reports(tiny_base: Base, goal: SearchObjective) -> None:
    found = run(tiny_base, goal)
    assert found.strength > found.provenance["start"] + 0.1
    assert float(goal.similarity(goal.features(tiny_base, [found.text]))[0]) == pytest.approx(found.strength, abs=1e-5)


def test_no_exchange_that_is_worse_is_taken(tiny_base: Base, goal: SearchObjective) -> None:
    """With one exchange tried in one step, about every other one is worse."""
    few = TokenSearchConfig(tokens=2, steps=1, top_k=50, candidates=1)
    found = [search(tiny_base, goal, Vocabulary(tiny_base), NOTHING, few, seed) for seed in range(6)]
    assert all(one.strength >= one.provenance["start"] for one in found)


def test_the_prompt_reads_back_to_its_tokens(tiny_base: Base, goal: SearchObjective) -> None:
    for seed in range(3):
        found = run(tiny_base, goal, seed=seed)
        assert tiny_base.tokenizer(found.text, add_special_tokens=False).input_ids == found.provenance["tokens"]
        assert found.text.isprintable()


def test_the_search_is_a_function_of_its_seed(tiny_base: Base, goal: SearchObjective) -> None:
    assert run(tiny_base, goal, seed=3) == run(tiny_base, goal, seed=3)
    assert len({run(tiny_base, goal, seed=seed).text for seed in range(3)}) == 3


def test_the_search_leaves_the_text_encoder_as_it_was(tiny_base: Base, goal: SearchObjective) -> None:
    before = encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states
    run(tiny_base, goal)
    assert torch.equal(encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states, before)
    assert not any(parameter.requires_grad for parameter in tiny_base.text_encoder.parameters())


def test_the_gradient_is_how_the_objective_moves_along_an_embedding(tiny_base: Base, goal: SearchObjective) -> None:
    tokens = torch.tensor([300, 310, 320])
    gains = _token_gains(tiny_base, goal, tokens)
    table = tiny_base.text_encoder.get_input_embeddings().weight
    # A one-hot step of size h towards token v adds h e_v to the embedding there, and nowhere else is token 310.
    h, v = 1e-2, 333
    ends = []
    for sign in (1, -1):
        kept = table.data[310].clone()
        table.data[310] += sign * h * table.data[v]
        ends.append(float(_similarities(tiny_base, goal, tokens[None])[0]))
        table.data[310] = kept
    assert float(gains[1, v]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=0.05)


def test_nothing_banned_is_said_not_even_across_tokens(tiny_base: Base, goal: SearchObjective) -> None:
    free = run(tiny_base, goal)
    letters = [letter for letter in free.text if letter.isalnum()]
    banned = Banned(frozenset(letters[:1]), frozenset())
    found = run(tiny_base, goal, banned)
    assert letters[0] not in found.text
    assert not banned.matches(found.text)


def test_a_name_is_banned_in_any_spelling_and_descriptions_word_by_word() -> None:
    concept = Concept(name="Van Gogh", kind="style", phrase="a painting in the style of Van Gogh", aliases=("vgh",))
    banned = banned_for(concept, ["swirling stars, the ear"])
    for text in ("Van Gogh", "v a n", "the VAN", "go gh", "GOGH.", "v-g-h", "a painting", "stars", "an ear"):
        assert banned.matches(text), text
    for text in ("the of", "starsign bear", "pain ting", "go home"):
        assert not banned.matches(text), text


def test_camel_case_names_are_several_words() -> None:
    banned = banned_for(Concept(name="BlueJay", kind="animal", phrase="a Blue Jay bird"))
    assert banned.matches("some blue thing")
    assert banned.matches("jay")


def test_a_vocabulary_with_everything_banned_is_refused(tiny_base: Base, goal: SearchObjective) -> None:
    with pytest.raises(UserError, match="no prompt of 4 tokens"):
        run(tiny_base, goal, Banned(frozenset({""}), frozenset()))


def test_purposes_restarts_and_concepts_have_seeds_of_their_own() -> None:
    purposes = itertools.product(("a search", "b"), range(2), ("Cat", "Dog"), range(3))
    seeds = {derived_seed(*purpose) for purpose in purposes}
    assert len(seeds) == 24
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_only_prompts_from_which_the_base_makes_the_concept_are_kept(
    tiny_base: Base,
    recipe: Recipe,
    world: ConceptSet,
    prompts: PromptSet,
    stub_judge: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(whole, "CANDIDATES", 2)
    monkeypatch.setattr(whole, "ROUNDS", 2)
    judge = stub_judge(lambda image, concept: concept.name == "Cat")
    quick = TokenSearch(tiny_base, TokenSearchConfig(tokens=2, steps=1, top_k=4, candidates=4))
    found = adversarial_prompts(quick, world, prompts, PromptChecker(tiny_base, recipe, judge), per_concept=1)
    assert set(found) == {"Cat", "Tulip", "Van Gogh"}
    assert len(found["Cat"]) == 1
    assert found["Tulip"] == found["Van Gogh"] == ()
    assert found["Cat"][0].detection_rate == 1.0
    unchecked = adversarial_prompts(quick, world, prompts, None, per_concept=2)
    assert [len(kept) for kept in unchecked.values()] == [2, 2, 2]


class Blurts(PromptAttack):
    """Says one text for ever, or until it has said all of several."""

    Config = AttackConfig

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = texts

    def find(self, target: AttackTarget, seed: int) -> Iterator[AdversarialPrompt]:
        return (AdversarialPrompt(text, float(strength)) for strength, text in enumerate(self.texts))


def texts(found: Iterable[KeptPrompt]) -> list[str]:
    return [kept.prompt.text for kept in found]


def test_whatever_an_attack_finds_no_prompt_with_the_name_is_kept(world: ConceptSet, prompts: PromptSet) -> None:
    found = adversarial_prompts(
        Blurts(["a cat", "fog", "a k-i-t-t-y"]), world, prompts, None, targets=[world.find("Cat")]
    )
    assert texts(found["Cat"]) == ["fog"]


def test_an_attack_that_only_repeats_itself_ends(
    tiny_base: Base, recipe: Recipe, world: ConceptSet, prompts: PromptSet, stub_judge: Any
) -> None:
    check = PromptChecker(tiny_base, recipe, stub_judge(lambda image, concept: True))
    found = adversarial_prompts(Blurts(itertools.repeat("fog")), world, prompts, check, targets=[world.find("Cat")])
    assert texts(found["Cat"]) == ["fog"]


def test_of_prompts_detected_as_often_the_strongest_come_first(world: ConceptSet, prompts: PromptSet) -> None:
    cat = [world.find("Cat")]
    found = adversarial_prompts(Blurts(["fog", "mist", "haze"]), world, prompts, None, per_concept=2, targets=cat)
    assert texts(found["Cat"]) == ["haze", "mist"]


def test_a_learnt_token_that_a_prompt_would_spell_out_is_no_token_of_the_search(tiny_base: Base) -> None:
    """In a prompt `<toy>` is three vectors (models/text/text_encoding.py); the search would have measured one."""
    tiny_base.tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2", "<hat>"])
    tiny_base.text_encoder.resize_token_embeddings(len(tiny_base.tokenizer))
    several, one = tiny_base.tokenizer.convert_tokens_to_ids(["<toy>", "<hat>"])
    assert Vocabulary(tiny_base).valid([[several], [one]], NOTHING) == [False, True]
