"""Every image once, with all that a judge has to find in it."""

from efface.concepts.concept import ConceptSet
from efface.concepts.prompts import PromptSet, prompt_id
from efface.eval.judging.eval_requests import Ask, eval_requests


def test_every_prompt_and_seed_is_one_image_in_a_stable_order(world: ConceptSet, prompts: PromptSet) -> None:
    requested = eval_requests(prompts, world, [world.find("Cat")], [3, 5], {"forget": 1})
    assert [(q.prompt, q.seed) for q in requested] == [
        (text, seed)
        for text in (
            *("an image of a cat", "a pet that purrs", "xq pl", "an image of a dog"),
            *("an image of a tulip", "a painting by Van Gogh"),
        )
        for seed in (3, 5)
    ]


def test_an_image_shared_by_targets_carries_the_asks_of_all(world: ConceptSet, prompts: PromptSet) -> None:
    requested = eval_requests(prompts, world, [world.find("Cat"), world.find("Van Gogh")], [0])
    tulip = next(q for q in requested if q.prompt == "an image of a tulip")
    number = prompt_id("an image of a tulip")
    assert tulip.asks == (
        Ask("Cat", "retain", "Tulip", number),
        Ask("Van Gogh", "adjacent", "Tulip", number),
        Ask("Van Gogh", "retain", "Tulip", number),
    )
    assert len({(q.prompt, q.seed) for q in requested}) == len(requested)


def test_a_seed_or_target_named_twice_is_asked_once(world: ConceptSet, prompts: PromptSet) -> None:
    cat = world.find("Cat")
    assert eval_requests(prompts, world, [cat, cat], [1, 1]) == eval_requests(prompts, world, [cat], [1])
