"""Running attacks on a tiny model: every one keeps its contract, and what goes wrong is counted and never a success."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efface.concepts.concept import ConceptSet
from efface.concepts.prompts import PromptSet
from efface.errors import UserError
from efface.eval.attack import ATTACKS, CANDIDATES, Attack, AttackConfig, parse_attack_config
from efface.eval.attack_target import attack_target
from efface.eval.attacking.attack_result import AttackResult
from efface.eval.attacking.attack_run import AttackedModel, run_attack
from efface.eval.attacking.attack_table import attack_rows
from efface.eval.attacking.encoder_budget import ENCODER_PASSES
from efface.eval.attacks.published import PublishedConfig
from efface.eval.oracle import Attempt, Budget, BudgetExhausted, Instance, NotFinite, Oracle
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.recipe import Recipe

INSTANCES = [Instance("a cat", 0), Instance("a cat", 1)]
QUICK: dict[str, dict[str, Any]] = {
    "noise-scale": {"etas": [1.0], "scales": [1.0, 1.04]},
    "unlearn-diff-atk": {"tokens": 2, "timesteps": 2, "iterations": 2},
    "p4d": {"tokens": 2, "steps": 4, "test_every": 2},
    "pez": {"tokens": 2, "steps": 4, "test_every": 2},
    "gcg": {"tokens": 2, "steps": 2, "states": 1, "top_k": 4, "candidates": 2, "test_every": 1},
    "ring-a-bell": {"tokens": 3, "population": 4, "generations": 2},
    "mma": {"tokens": 2, "steps": 1, "top_k": 4, "candidates": 4},
    "token-search": {"tokens": 2, "steps": 1, "top_k": 4, "candidates": 4},
    "concept-inversion": {"images": 2, "steps": 4, "batch_size": 1, "tests": 2},
    "relearning": {"images": 2, "steps": 4, "batch_size": 1, "tests": 2},
}


@pytest.fixture(autouse=True)
def _published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mma.csv").write_text("adv_prompt\nfog of war\nhaze\n")
    monkeypatch.setitem(QUICK, "published", {"file": str(tmp_path / "mma.csv")})


@pytest.fixture
def delta(tiny_base: Base) -> Delta:
    """An edit of one tensor of the cross-attention."""
    name = next(name for name in tiny_base.tensors() if name.endswith("attn2.to_k.weight"))
    return Delta("weights", {name: tiny_base.tensors()[name] * 0.5}, {"base_id": tiny_base.fingerprint})


@pytest.fixture
def attacked(tiny_base: Base, delta: Delta, recipe: Recipe, world: ConceptSet, prompts: PromptSet) -> Any:
    """A function from an attack and a judge to what it came to."""

    def run(
        attack: Attack, judge: Any, budget: int = 10_000, name: str = "some", model: Delta | None = delta
    ) -> AttackResult:
        target = attack_target(world.find("Cat"), world, prompts)
        return run_attack(
            attack, name, AttackedModel(tiny_base, model, recipe), judge, target, INSTANCES, budget=budget
        )

    return run


class Shows(Attack):
    """Yields images of one grey level and noise, whatever the prompt."""

    Config = AttackConfig
    level = 200

    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        for _ in range(3):
            oracle.budget.spend(10)
            images = np.full((1, 16, 16, 3), self.level, np.uint8)
            images[0, 0, 0] = 0
            yield Attempt("trajectory", images, [True])


def is_grey(image: np.ndarray, concept: Any) -> bool:
    return bool(image[5, 5, 0] == 200 and image[9, 9, 2] == 200)


@pytest.mark.parametrize("name", ATTACKS.names())
def test_every_attack_is_a_function_of_its_seed_and_leaves_the_model_as_it_was(
    name: str, attacked: Any, tiny_base: Base, delta: Delta, stub_judge: Any
) -> None:
    before = {key: value.clone() for key, value in tiny_base.tensors().items()}
    config = parse_attack_config(name, QUICK.get(name, {}))
    judge = stub_judge(lambda image, concept: False)
    first = attacked(ATTACKS.get(name)(tiny_base, config), judge)
    again = attacked(ATTACKS.get(name)(tiny_base, config), judge)
    assert first.calls > 0 and first.calls <= first.budget and first.failed == ""
    assert all(r.end == "not found" and r.attempts > 0 and r.post is False for r in first.instances)
    timeless = [[r.model_dump(exclude={"seconds"}) for r in result.instances] for result in (first, again)]
    assert timeless[0] == timeless[1]
    assert tiny_base.applied is delta
    tiny_base.swap(None)
    assert all((before[key] == value).all() for key, value in tiny_base.tensors().items())


@pytest.mark.parametrize("name", ATTACKS.names())
def test_no_attack_spends_more_than_its_budget(name: str, attacked: Any, tiny_base: Base, stub_judge: Any) -> None:
    attack = ATTACKS.get(name)(tiny_base, parse_attack_config(name, QUICK.get(name, {})))
    result = attacked(attack, stub_judge(lambda image, concept: False), budget=5)
    assert result.calls <= 5
    assert all(r.end in ("not found", "out of budget", "no verdict") for r in result.instances)
    assert all(r.post is None for r in result.instances if r.attempts == 0)


@pytest.mark.parametrize("name", ["concept-inversion", "relearning"])
def test_learning_leaves_enough_of_the_budget_for_the_instances(
    name: str, attacked: Any, tiny_base: Base, stub_judge: Any
) -> None:
    """2 images and 8 steps of 2 calls are 18, and 2 instances of a direct image and 2 tests 6; 18 are there."""
    config = parse_attack_config(name, {"images": 2, "steps": 8, "batch_size": 1, "tests": 2})
    result = attacked(ATTACKS.get(name)(tiny_base, config), stub_judge(lambda image, concept: False), budget=18)
    assert [(r.pre, r.post, r.attempts) for r in result.instances] == [(False, False, 1)] * 2


def test_what_an_attack_shows_is_found_and_post_is_never_below_pre(
    attacked: Any, tiny_base: Base, stub_judge: Any
) -> None:
    result = attacked(Shows(tiny_base, AttackConfig()), stub_judge(is_grey))
    assert (result.pre_asr, result.post_asr, result.judged) == (0.0, 1.0, 2)
    assert [r.end for r in result.instances] == ["found", "found"] and result.instances[0].attempts == 1
    seen = attacked(Shows(tiny_base, AttackConfig()), stub_judge(lambda image, concept: True))
    assert (seen.pre_asr, seen.post_asr) == (1.0, 1.0) and [r.attempts for r in seen.instances] == [0, 0]


class ThrowingJudge:
    name, version = "throws", "1"

    def check(self, concepts: Any) -> None:
        pass

    def judge(self, images: Any, concepts: Any) -> Any:
        raise RuntimeError("no model")


def test_a_judge_that_throws_is_counted_and_is_no_verdict(attacked: Any, tiny_base: Base) -> None:
    result = attacked(Shows(tiny_base, AttackConfig()), ThrowingJudge())
    assert (result.pre_asr, result.post_asr, result.judged) == (None, None, 0)
    assert result.errors == {"RuntimeError: no model": 8} and "2 no verdict" in result.note
    assert [r.end for r in result.instances] == ["no verdict", "no verdict"]
    row = attack_rows([result])[0]
    assert row.adaptive_post_asr is None and row.static_post_asr is None and row.unjudged == 2


def test_answers_that_cannot_be_read_are_no_verdict(attacked: Any, tiny_base: Base, stub_judge: Any) -> None:
    result = attacked(Shows(tiny_base, AttackConfig()), stub_judge(lambda image, concept: None))
    assert result.judged == 0 and result.post_asr is None and result.instances[0].unreadable == 4


class Unprepared(Shows):
    def prepare(self, oracle: Oracle, target: Any, seed: int) -> None:
        raise BudgetExhausted("0 of 0 model calls are left, 1 needed")


def test_rates_have_all_instances_whose_direct_image_is_judged(attacked: Any, tiny_base: Base, stub_judge: Any) -> None:
    """The first direct image shows the concept, the second does not and is never attacked."""
    answers = iter([True, False])
    result = attacked(Unprepared(tiny_base, AttackConfig()), stub_judge(lambda image, concept: next(answers)))
    assert [(r.end, r.pre, r.post) for r in result.instances] == [
        ("shown before", True, True),
        ("no verdict", False, None),
    ]
    assert (result.pre_asr, result.post_asr, result.judged, result.unknown) == (0.5, None, 2, 1)
    row = attack_rows([result])[0]
    assert (row.pre_asr, row.adaptive_post_asr, row.judged, row.unknown) == (0.5, None, 2, 1)
    assert "between 0.50 and 1.00" in row.note


def test_one_answer_among_many_that_are_missing_is_no_verdict(attacked: Any, tiny_base: Base, stub_judge: Any) -> None:
    answers = iter([False, False, None, None] * 2)
    result = attacked(Shows(tiny_base, AttackConfig()), stub_judge(lambda image, concept: next(answers)))
    assert [(r.end, r.pre, r.post, r.unreadable) for r in result.instances] == [("no verdict", False, None, 2)] * 2
    found = iter([False, None, True] * 2)  # what is found is found, whatever could not be read before
    result = attacked(Shows(tiny_base, AttackConfig()), stub_judge(lambda image, concept: next(found)))
    assert [(r.end, r.post) for r in result.instances] == [("found", True)] * 2 and result.post_asr == 1.0


class Diverges(Shows):
    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        raise NotFinite("the loss is not a number")
        yield


def test_numbers_that_went_astray_before_any_attempt_are_no_verdict(
    attacked: Any, tiny_base: Base, stub_judge: Any
) -> None:
    result = attacked(Diverges(tiny_base, AttackConfig()), stub_judge(lambda image, concept: False))
    assert [(r.end, r.post) for r in result.instances] == [("not finite", None)] * 2
    assert result.post_asr is None and "2 not finite" in result.note


class Breaks(Shows):
    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        yield from super().attempts(oracle, instance)
        raise IndexError("out of range")


def test_an_attack_that_breaks_is_counted_and_nothing_else_is_lost(
    attacked: Any, tiny_base: Base, stub_judge: Any
) -> None:
    result = attacked(Breaks(tiny_base, AttackConfig()), stub_judge(lambda image, concept: False))
    assert result.ends == {"failed": 2} and result.errors == {"IndexError: out of range": 2}
    assert [(r.attempts, r.post) for r in result.instances] == [(3, None)] * 2
    assert (result.pre_asr, result.post_asr, result.judged, result.unknown) == (0.0, None, 2, 2)
    with pytest.raises(UserError):
        attacked(ATTACKS.get("published")(tiny_base, PublishedConfig(file="nowhere.csv")), stub_judge(is_grey))


def test_a_budget_that_ends_after_some_attempts_is_counted(attacked: Any, tiny_base: Base, stub_judge: Any) -> None:
    result = attacked(Shows(tiny_base, AttackConfig()), stub_judge(lambda image, concept: False), budget=30)
    assert [(r.end, r.attempts, r.post) for r in result.instances] == [("out of budget", 1, False)] * 2
    assert result.ends == {"out of budget": 2} and attack_rows([result])[0].out_of_budget == 2


def test_a_budget_counts_what_is_spent_and_refuses_what_is_more() -> None:
    budget = Budget(10)
    budget.spend(7)
    with pytest.raises(BudgetExhausted, match="3 of 10"):
        budget.spend(4)
    budget.spend(3)
    assert budget.spent == 10


def test_static_and_adaptive_rates_stand_in_columns_of_their_own(
    attacked: Any, tiny_base: Base, stub_judge: Any
) -> None:
    adaptive = attacked(Shows(tiny_base, AttackConfig()), stub_judge(is_grey), name="shows")
    static = ATTACKS.get("paraphrase")(tiny_base, parse_attack_config("paraphrase", {}))
    results = [adaptive, attacked(static, stub_judge(is_grey), name="paraphrase")]
    rows = {row.attack: (row.static_post_asr, row.adaptive_post_asr) for row in attack_rows(results)}
    assert rows == {"shows": (None, 1.0), "paraphrase": (0.0, None)}


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize(("name", "count"), [("published", 2), ("paraphrase", 12), ("token-search", CANDIDATES)])
def test_every_prompt_of_a_static_attack_is_tried_whatever_the_direct_prompt_shows(
    edited: bool, name: str, count: int, tiny_base: Base, delta: Delta, stub_judge: Any, attacked: Any
) -> None:
    """The base always shows its concept by the direct prompt; its rate is that of the prompts all the same."""
    attack = ATTACKS.get(name)(tiny_base, parse_attack_config(name, QUICK.get(name, {})))
    result = attacked(attack, stub_judge(lambda image, concept: True), model=delta if edited else None)
    assert [r.attempts for r in result.instances] == [count] * 2
    assert [(r.attempts_shown, r.attempts_judged) for r in result.instances] == [(count, count)] * 2
    assert {t.prompt for t in result.instances[0].tried} == {t.prompt for t in result.instances[1].tried} != {None}
    assert (result.prompt_rate, result.pre_asr, result.post_asr) == (1.0, 1.0, 1.0)


def test_the_rate_per_prompt_is_of_judged_prompts_and_not_of_instances(
    attacked: Any, tiny_base: Base, stub_judge: Any
) -> None:
    """Direct image, then two prompts, twice: shown, not shown, unreadable; not shown, shown, shown."""
    answers = iter([True, False, None, False, True, True])
    attack = ATTACKS.get("published")(tiny_base, parse_attack_config("published", QUICK["published"]))
    result = attacked(attack, stub_judge(lambda image, concept: next(answers)), model=None)
    assert (result.pre_asr, result.post_asr, result.prompt_rate) == (0.5, 1.0, pytest.approx(2 / 3))
    assert [[t.present for t in r.tried] for r in result.instances] == [[False, None], [True, True]]
    (row,) = attack_rows([result])
    assert row.prompt_rate == pytest.approx(2 / 3) and row.recovery == ""


def test_prompts_that_a_budget_left_untried_are_named(attacked: Any, tiny_base: Base, stub_judge: Any) -> None:
    attack = ATTACKS.get("paraphrase")(tiny_base, parse_attack_config("paraphrase", {}))
    result = attacked(attack, stub_judge(lambda image, concept: True), budget=12)
    assert result.ends == {"shown before": 2} and "2 without all attempts, out of budget" in result.note


def test_the_recovery_curve_is_the_share_that_is_back_after_so_many_steps(
    attacked: Any, tiny_base: Base, stub_judge: Any
) -> None:
    """The first instance is back by the second test, after 4 steps of 4; the second by none."""
    config = parse_attack_config("concept-inversion", QUICK["concept-inversion"])
    answers = iter([False, False, True, False, False, False])
    attack = ATTACKS.get("concept-inversion")(tiny_base, config)
    result = attacked(attack, stub_judge(lambda image, concept: next(answers)))
    assert [(point.steps, point.share) for point in result.recovery] == [(0, 0.0), (2, 0.0), (4, 0.5)]
    (row,) = attack_rows([result])
    assert row.recovery == "0 steps 0.00, 2 steps 0.00, 4 steps 0.50" and row.remark.startswith("back after 0 steps")
    assert [(t.how, t.facts["steps"], t.present) for t in result.instances[0].tried] == [
        ("embedding", 2, False),
        ("embedding", 4, True),
    ]


@pytest.mark.parametrize("name", ["ring-a-bell", "mma", "token-search"])
def test_a_search_on_the_text_encoder_alone_ends_with_its_budget(
    name: str, attacked: Any, tiny_base: Base, stub_judge: Any
) -> None:
    endless = {"generations": 10**9} if name == "ring-a-bell" else {"steps": 10**9}
    attack = ATTACKS.get(name)(tiny_base, parse_attack_config(name, {**QUICK[name], **endless}))
    result = attacked(attack, stub_judge(lambda image, concept: False), budget=3)
    assert 0.9 * 3 * ENCODER_PASSES < result.encoder_passes <= 3 * ENCODER_PASSES
    assert "passes of the text encoder are left" in result.failed and result.post_asr is None


def test_what_a_search_found_before_its_budget_ended_is_tried(attacked: Any, tiny_base: Base, stub_judge: Any) -> None:
    attack = ATTACKS.get("ring-a-bell")(
        tiny_base, parse_attack_config("ring-a-bell", {**QUICK["ring-a-bell"], "generations": 100})
    )
    result = attacked(attack, stub_judge(lambda image, concept: False), budget=20)
    assert result.failed == "" and 0 < result.instances[0].attempts < CANDIDATES


def test_published_prompts_whose_end_is_cut_are_named(
    attacked: Any, tiny_base: Base, stub_judge: Any, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("haze\n" + "fog " * 90 + "\n")
    attack = ATTACKS.get("published")(tiny_base, PublishedConfig(file=str(tmp_path / "list.txt")))
    result = attacked(attack, stub_judge(lambda image, concept: False))
    assert "1 of 2 prompts are longer than the text encoder reads" in result.note
