"""Slots for prompts that are not known yet, and what they are filled with."""

from efface.concepts.prompts import prompt_id
from efface.eval.attack import AdversarialPrompt
from efface.eval.attacking.adversarial_prompts import CHECK_SEEDS, KeptPrompt, found_prompts
from efface.eval.attacking.found_prompts import FoundPrompts, checks_of, fill, read_slot, slot
from efface.eval.judging.eval_requests import Ask, EvalRequest

CHECK = "0123456789abcdef"


def kept(text: str, rate: float, unreadable: int = 0) -> KeptPrompt:
    return KeptPrompt(AdversarialPrompt(text, 0.5), rate, unreadable)


def found(*tried: KeptPrompt, enough: int = 2) -> FoundPrompts:
    return found_prompts("cat", "a", tried, enough)


def request(text: str, seed: int = 3) -> EvalRequest:
    return EvalRequest(text, seed, (Ask("cat", "adversarial", "cat", prompt_id(text)),))


def test_a_slot_names_its_check_and_rank_and_nothing_else_is_one() -> None:
    assert read_slot(slot(CHECK, 2)) == (CHECK, 2)
    assert read_slot(f"{slot(CHECK, 2)} and more") is None


def test_slots_are_filled_by_rank_and_those_without_a_prompt_are_left_out() -> None:
    asked = [request("a cat"), *(request(slot(CHECK, rank)) for rank in (1, 2))]
    filled = fill(asked, {CHECK: found(kept("fog", 1.0))}.__getitem__)
    assert filled == (request("a cat"), request("fog"))
    assert checks_of(asked) == (CHECK,)


def test_only_confirmed_prompts_are_asked_where_there_are_any() -> None:
    some = found(kept("fog", 0.75), kept("mist", 0.25))
    assert [prompt.text for prompt in some.prompts] == ["fog"] and some.confirmed and not some.warning
    assert (some.tried, some.images) == (2, 2 * len(CHECK_SEEDS))


def test_a_concept_without_a_confirmed_prompt_is_asked_by_the_strongest_and_named() -> None:
    none = found(kept("fog", 0.25), kept("mist", 0.0), kept("haze", 0.0))
    assert [prompt.text for prompt in none.prompts] == ["fog", "mist"] and not none.confirmed
    assert "'cat'" in none.warning and "at most 25%" in none.warning and "3 tried" in none.warning


def test_a_concept_without_any_prompt_has_no_axis_and_that_is_said() -> None:
    assert "no ERR" in found().warning


def test_verdicts_that_could_not_be_read_are_said_and_are_no_proof_of_anything() -> None:
    assert "2 of 8 verdicts could not be read" in found(kept("fog", 1.0), kept("mist", 0.0, unreadable=2)).warning
