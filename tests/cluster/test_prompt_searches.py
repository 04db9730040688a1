"""Campaigns whose prompt set has no adversarial prompts: these are found first, once, and fill the plan's slots."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_campaign import CONCEPTS, IMAGES_PER_PROMPT, LIMITS, UCE

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.sharding import retaining
from efface.cluster.campaign.spec import Campaign, Evaluation
from efface.cluster.run import Run, execute, open_run
from efface.cluster.run_results import Results
from efface.cluster.storage.prompt_cache import cached
from efface.cluster.storage.remaining import remaining_tasks
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.prompt_search import FOUND, PromptCheck, PromptSearch
from efface.cluster.tasks.training import TrainingTask
from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import AXES
from efface.eval.attack import ATTACKS
from efface.eval.attacking.adversarial_prompts import CHECK_SEEDS
from efface.eval.attacking.found_prompts import checks_of, read_slot
from efface.eval.attacks import concept_inversion
from efface.eval.calibration import calibration_requests
from efface.eval.judging.image_table import read_table
from efface.train.job import Job

MakeCampaign = Callable[..., Campaign]
QUICK = {"config": {"tokens": 2, "steps": 1, "top_k": 4, "candidates": 4}}


@pytest.fixture
def silent(campaign_inputs: Path, tmp_path: Path) -> dict[str, Any]:
    """What makes a campaign one whose prompt set has no adversarial column."""
    rows = [f"{c},a {c},one {c},hint of {c[::-1]}" for c in CONCEPTS]
    prompts = tmp_path / "silent.csv"
    prompts.write_text("\n".join(["concept_name,direct_prompt_1,direct_prompt_2,indirect_prompt", *rows]) + "\n")
    evaluation = {
        "prompts": str(prompts),
        "images_per_prompt": IMAGES_PER_PROMPT,
        "prompts_per_concept": {**LIMITS, "adversarial": 2},
        "shard_size": 5,
        "prompt_search": QUICK,
    }
    return {"methods": [UCE], "evaluation": evaluation}


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache without anything in it."""
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


def run_here(run: Run) -> Results:
    return execute(run, 0, None, Console(file=io.StringIO()))


# the plan


def test_all_five_axes_are_planned_and_what_they_lack_is_found_first(
    silent: dict[str, Any], plan: Callable[..., Plan]
) -> None:
    made = plan(**silent, concepts={"targets": ["cat", "bus"]})
    assert made.axes == AXES
    assert [search.concept for search in made.prompt_searches] == ["cat", "bus"]
    assert [check.search for check in made.prompt_checks] == list(made.prompt_searches)
    checks = {check.concept: check.id for check in made.prompt_checks}
    for task in made.tasks:
        if isinstance(task, TrainingTask):
            assert set(checks.values()) <= set(task.requires)
        if isinstance(task, Shard) and task.model.job:
            assert checks[task.model.job.concepts[0]] in task.requires
    assert any("are searched first" in warning for warning in made.warnings)


def test_every_search_is_made_before_what_needs_it(silent: dict[str, Any], plan: Callable[..., Plan]) -> None:
    for part in (plan(**silent), plan(**silent).part(2, 3)):
        provided = set(part.products)
        for task in part.tasks:
            assert set(task.requires) <= provided
            provided |= {task.provides} if task.provides else set()


def test_parts_begin_with_different_concepts(silent: dict[str, Any], plan: Callable[..., Plan]) -> None:
    made = plan(**silent, concepts={"targets": "all"})
    first = [made.part(number, 4).prompt_searches[0].concept for number in (1, 2, 3, 4)]
    assert sorted(first) == sorted(CONCEPTS)
    assert len(made.part(2, 4).prompt_checks) == 4


def test_ids_are_made_of_what_decides_the_prompts(
    silent: dict[str, Any], plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, again = plan(**silent), plan(**silent)
    assert [task.id for task in made.tasks] == [task.id for task in again.tasks]
    more = plan(**silent, concepts={"targets": ["dog", "cat"]}, seeds=[3])
    assert {check.id for check in made.prompt_checks} < {check.id for check in more.prompt_checks}
    evaluation = {**silent["evaluation"], "prompt_search": {**QUICK, "seed": 1}}
    other = plan(**{**silent, "evaluation": evaluation})
    assert not {task.id for task in made.of_kind(PromptSearch)} & {task.id for task in other.of_kind(PromptSearch)}
    asking = [{s.id for s in each.of_kind(Shard) if checks_of(s.eval_requests)} for each in (made, again, other)]
    assert asking[0] == asking[1] and not asking[0] & asking[2]
    monkeypatch.setattr(ATTACKS.get("token-search"), "version", 2)
    assert not {s.id for s in plan(**silent).prompt_searches} & {s.id for s in made.prompt_searches}


def test_an_own_column_wins_and_a_limit_of_zero_leaves_the_axis_out(
    silent: dict[str, Any], plan: Callable[..., Plan]
) -> None:
    assert not plan().of_kind(PromptSearch)
    evaluation = {**silent["evaluation"], "prompts_per_concept": {**LIMITS, "adversarial": 0}}
    made = plan(**{**silent, "evaluation": evaluation})
    assert not made.of_kind(PromptSearch) and "adversarial" not in made.axes


# the run


def test_a_run_ends_with_an_err_and_the_next_one_finds_the_prompts_without_searching(
    silent: dict[str, Any],
    campaign: MakeCampaign,
    tmp_path: Path,
    isolated: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = open_run(campaign(**silent), tmp_path / "first")
    results = run_here(run)
    assert not results.unscored and [row.method for row in results.rows] == ["base", "uce"]
    table = read_table(run.folder.table)
    prompts = zip(table["axis"].to_pylist(), table["prompt"].to_pylist(), strict=True)
    asked = {prompt for axis, prompt in prompts if axis == "adversarial"}
    found = json.loads(run.folder.output(run.plan.prompt_checks[0], FOUND).read_text())
    assert asked == {prompt["text"] for prompt in found["prompts"]}
    assert not any(read_slot(text) for text in table["prompt"].to_pylist())
    axis = json.loads(run.folder.scores.read_text())["adversarial_axis"]
    assert axis["kind"] == "static"  # all of it was searched on the base
    rates = axis["base_rates"]
    chosen = [prompt["detection_rate"] for prompt in found["prompts"]]
    of_base = [row["present"] for row in table.to_pylist() if row["method"] == "base" and row["axis"] == "adversarial"]
    assert rates == {"cat": {"selected": sum(chosen) / len(chosen), "measured": sum(of_base) / len(of_base)}}
    # a random model shows what a random judge likes: where that is nothing, it is said
    assert bool(results.warnings) == (not any(p["detection_rate"] >= 0.5 for p in found["prompts"]))

    def never(self: object, worker: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(PromptSearch, "run", never)
    monkeypatch.setattr(PromptCheck, "run", never)
    second = open_run(campaign(**silent, seeds=[5]), tmp_path / "second")
    assert all(cached(check) for check in second.plan.prompt_checks)
    assert not run_here(second).unscored
    assert remaining_tasks(second.plan, second.folder).is_empty


def test_prompts_are_chosen_by_other_images_than_those_that_are_scored() -> None:
    """Nor by those on which judges are calibrated, or of which attacks learn."""
    most = Evaluation.model_fields["images_per_prompt"].metadata
    limit = next(each.le for each in most if hasattr(each, "le"))
    calibration = range(calibration_requests.FIRST_SEED, calibration_requests.FIRST_SEED + 2 * 1000)
    assert limit <= min(calibration) and max(calibration) < min(CHECK_SEEDS)
    assert max(CHECK_SEEDS) < concept_inversion.FIRST_SEED


# retained concepts where everything is forgotten


def concept(name: str, adjacent: tuple[str, ...] = ()) -> Concept:
    return Concept(name=name, kind="object", phrase=f"a {name}", adjacent=adjacent)


SET = ConceptSet(
    name="s",
    version=1,
    concepts=(concept("cat", ("dog",)), concept("bus", ("tram",))),
    neighbours=(concept("dog"), concept("tram")),
)


def models(strategy: Any) -> list[Model]:
    parent = "0" * 16 if strategy == "continual" else None
    of_base = {"base": "b", "base_id": "0" * 64, "concept_set": "s", "concept_set_sha256": "0" * 64}
    concepts = ("cat",) if strategy == "single" else ("cat", "bus")
    how = {"method": "uce", "method_version": 1, "config": {}, "seed": 0, "strategy": strategy, "parent": parent}
    return [Model("base", None, "0" * 64), Model("uce", Job(**of_base, **how, concepts=concepts), "0" * 64)]


def test_where_all_is_forgotten_what_is_retained_are_neighbours_of_others() -> None:
    made = retaining(SET, SET.concepts, models("continual"))
    kept = {c.name: [other.name for other in made.retained_for(made.find(c.name))] for c in SET.concepts}
    assert kept == {"cat": ["tram"], "bus": ["dog"]}
    assert retaining(SET, SET.concepts, models("single")) is SET
    some = retaining(SET, SET.concepts[:1], models("multi"))
    assert [other.name for other in some.retained_for(some.find("cat"))] == ["bus"]


def test_a_slot_is_no_prompt_that_anybody_would_write(silent: dict[str, Any], plan: Callable[..., Plan]) -> None:
    made = plan(**silent)
    requests = [request for shard in made.of_kind(Shard) for request in shard.eval_requests]
    assert checks_of(requests) == (made.prompt_checks[0].id,)
    assert read_slot("a photo of a cat") is None
