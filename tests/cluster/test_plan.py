"""A campaign expanded: what is in the plan, what it is called, and that names are made of content alone."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_campaign import CONCEPTS, ESD, IMAGES_PER_PROMPT, LIMITS, PROMPTS, UCE, write_campaign_inputs

from efface.cluster.campaign.plan import Plan
from efface.cluster.tasks.model import BASE
from efface.concepts.prompts import AXES
from efface.errors import UserError

MakePlan = Callable[..., Plan]


def ids(plan: Plan) -> list[str]:
    """Every id in a plan."""
    shards = [shard.id for shards in plan.shards.values() for shard in shards]
    return [*(calibration.id for calibration in plan.calibrations), *(model.id for model in plan.models), *shards]


def shard_ids(plan: Plan) -> set[str]:
    return {shard.id for shards in plan.shards.values() for shard in shards}


def images(plan: Plan, model_id: str) -> list[tuple[str, int]]:
    return [(q.prompt, q.seed) for shard in plan.shards[model_id] for q in shard.eval_requests]


def asks(plan: Plan, model_id: str) -> set[tuple[str, str, str]]:
    eval_requests = (q for shard in plan.shards[model_id] for q in shard.eval_requests)
    return {(a.concept, a.axis, a.asked_concept) for q in eval_requests for a in q.asks}


def test_the_base_comes_first_then_method_by_method_concept_by_concept_seed_by_seed(plan: MakePlan) -> None:
    made = plan(concepts={"targets": ["bus", "cat"]}, seeds=[7, 3])
    found = [(m.label, m.job.concepts, m.job.seed) for m in made.models if m.job]
    expected = [(method, (c,), seed) for method in ("uce", "esd") for c in ("bus", "cat") for seed in (7, 3)]
    assert (made.models[0].label, made.models[0].job) == (BASE, None)
    assert found == expected and len(made.models) == 1 + len(expected)


def test_all_targets_are_the_sets_concepts_in_their_order(plan: MakePlan) -> None:
    made = plan(concepts={"targets": "all"}, methods=[UCE])
    assert [m.job.concepts for m in made.models if m.job] == [(name,) for name in CONCEPTS]


def test_a_target_may_be_named_by_another_spelling(plan: MakePlan) -> None:
    assert ids(plan(concepts={"targets": [" C A T"]})) == ids(plan())


def test_a_sweep_gives_every_variant_a_label_of_its_own(plan: MakePlan) -> None:
    swept = {"method": "uce", "label": "u", "config": {"ridge": [0.5, 1.0], "tokens": "all", "templates": ["{}"]}}
    jobs = [m for m in plan(methods=[swept]).models if m.job]
    assert [m.label for m in jobs] == ["u ridge=0.5", "u ridge=1.0"]
    assert [m.job.config["ridge"] for m in jobs if m.job] == [0.5, 1.0]
    assert all(m.job.config["tokens"] == "all" and m.job.config["preserve"] == "retained" for m in jobs if m.job)


def test_every_image_of_a_model_is_made_once(plan: MakePlan) -> None:
    made = plan()
    for model in made.models:
        wanted = images(made, model.id)
        assert len(wanted) == len(set(wanted)) == PROMPTS * IMAGES_PER_PROMPT
    assert made.images == 3 * PROMPTS * IMAGES_PER_PROMPT


def test_every_axis_of_every_target_is_asked_of_its_model(plan: MakePlan) -> None:
    made = plan(concepts={"targets": ["cat", "bus"]}, methods=[UCE])
    for model in made.models[1:]:
        assert model.job
        assert {(c, axis) for c, axis, _ in asks(made, model.id)} == {(model.job.concepts[0], axis) for axis in AXES}
    assert {(c, axis) for c, axis, _ in asks(made, made.models[0].id)} == {(c, a) for c in ("cat", "bus") for a in AXES}


def test_the_base_is_asked_everything_that_any_model_is_asked(plan: MakePlan) -> None:
    for strategy in ("single", "multi"):
        made = plan(strategy=strategy, concepts={"targets": ["cat", "bus"]})
        of_models = set().union(*(asks(made, model.id) for model in made.jobs))
        assert of_models <= asks(made, made.models[0].id)


def test_shards_hold_at_most_as_many_images_as_allowed_and_together_all_of_them(plan: MakePlan) -> None:
    made = plan()
    for shards in made.shards.values():
        assert [len(shard.eval_requests) for shard in shards] == [5, 5, 4]
        assert [shard.index for shard in shards] == [0, 1, 2]
    assert made.shard_count == 9


def test_one_model_that_forgets_several_is_not_asked_to_have_kept_one_of_them(plan: MakePlan) -> None:
    targets = ("cat", "bus")
    made = plan(strategy="multi", concepts={"targets": list(targets)}, methods=[UCE])
    assert [model.job.concepts for model in made.jobs if model.job] == [targets]
    asked = asks(made, made.jobs[0].id)
    assert {a for _, axis, a in asked if axis in ("adjacent", "retain")} == {"dog", "tram"}
    assert {(c, axis) for c, axis, _ in asked} == {(c, axis) for c in targets for axis in AXES}


def test_the_same_campaign_has_the_same_ids_and_they_are_all_different(plan: MakePlan) -> None:
    first, second = ids(plan()), ids(plan())
    assert first == second
    assert len(set(first)) == len(first)
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in first)


def test_folders_are_called_by_method_concept_and_id(plan: MakePlan) -> None:
    base, uce, _ = plan().models
    assert base.folder == f"base-{base.id}" and uce.folder == f"uce-cat-{uce.id}"


def test_neither_the_campaigns_name_nor_the_order_of_its_methods_goes_into_an_id(plan: MakePlan) -> None:
    other = plan(name="other", methods=[ESD, UCE], resources={"cpus": 2})
    assert sorted(ids(other)) == sorted(ids(plan()))


EVALUATION: dict[str, Any] = {"images_per_prompt": IMAGES_PER_PROMPT, "prompts_per_concept": LIMITS, "shard_size": 5}


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": [{"method": "uce", "config": {"ridge": 0.6}}]},
        {"seeds": [1]},
        {"concepts": {"targets": ["dog"]}},
    ],
    ids=["config", "seed", "concept"],
)
def test_what_a_job_is_made_of_changes_its_id_and_its_shards(changes: dict[str, Any], plan: MakePlan) -> None:
    before, after = plan(methods=[UCE]), plan(**{"methods": [UCE], **changes})
    assert before.jobs[0].id != after.jobs[0].id
    of_jobs = [{shard.id for shard in made.shards[made.jobs[0].id]} for made in (before, after)]
    assert not of_jobs[0] & of_jobs[1]


def test_a_label_changes_the_shards_whose_rows_bear_it_but_not_the_job(plan: MakePlan) -> None:
    before, after = plan(methods=[UCE]), plan(methods=[{**UCE, "label": "u"}])
    assert [m.id for m in before.models] == [m.id for m in after.models]
    base, job = (m.id for m in before.models)
    assert [s.id for s in before.shards[base]] == [s.id for s in after.shards[base]]
    assert not {s.id for s in before.shards[job]} & {s.id for s in after.shards[job]}


def test_more_images_keep_no_shard_that_has_other_images_in_it(plan: MakePlan) -> None:
    evaluation = {**EVALUATION, "images_per_prompt": 3}
    assert not shard_ids(plan()) & shard_ids(plan(evaluation=evaluation))


def change_recipe(campaign_inputs: Path) -> None:
    edit(campaign_inputs / "recipe.yaml", guidance_scale=3)


def change_judge(campaign_inputs: Path) -> None:
    edit(campaign_inputs / "judge.yaml", threshold=0.4)


def change_judge_weights(campaign_inputs: Path) -> None:
    weights = campaign_inputs / "judge" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def change_concepts(campaign_inputs: Path) -> None:
    edit(campaign_inputs / "concepts.yaml", version=2)


def change_prompts(campaign_inputs: Path) -> None:
    text = (campaign_inputs / "prompts.csv").read_text()
    (campaign_inputs / "prompts.csv").write_text(text.replace("one tram", "two trams"))


def change_base(campaign_inputs: Path) -> None:
    vocabulary = campaign_inputs / "model" / "tokenizer" / "vocab.json"
    vocabulary.write_text(vocabulary.read_text() + "\n")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "jobs_too"),
    [
        (change_recipe, False),
        (change_judge, False),
        (change_judge_weights, False),
        (change_prompts, False),
        (change_concepts, True),
        (change_base, True),
    ],
)
def test_another_file_behind_the_same_name_changes_the_ids(
    change: Callable[[Path], None],
    jobs_too: bool,
    plan: MakePlan,
    tiny_base_folder: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(tiny_base_folder, tmp_path / "model")
    write_campaign_inputs(tmp_path, tmp_path / "model")
    before = plan(base=str(tmp_path / "base.yaml"))
    change(tmp_path)
    after = plan(base=str(tmp_path / "base.yaml"))
    assert not shard_ids(before) & shard_ids(after)
    assert not {t.id for t in before.calibrations} & {t.id for t in after.calibrations}
    assert ({m.id for m in before.jobs} != {m.id for m in after.jobs}) == jobs_too


def test_a_copy_of_the_same_files_elsewhere_has_the_same_ids(
    plan: MakePlan, campaign_inputs: Path, tiny_base_folder: Path, tmp_path: Path
) -> None:
    write_campaign_inputs(tmp_path, tiny_base_folder)
    assert ids(plan(base=str(tmp_path / "base.yaml"))) == ids(plan())


FORGET_ONLY = {"prompts_per_concept": {"indirect": 0, "adversarial": 0, "adjacent": 0, "retain": 0}}


def world_with(folder: Path, model: Path, prompt: str) -> str:
    """A world of its own, in which the cat's first direct prompt is `prompt`; its base."""
    write_campaign_inputs(folder, model)
    text = (folder / "prompts.csv").read_text()
    (folder / "prompts.csv").write_text(text.replace("cat,a cat,", f"cat,{prompt},"))
    return str(folder / "base.yaml")


def test_prompts_that_the_text_encoder_cuts_are_named_with_row_and_column(
    plan: MakePlan, tiny_base_folder: Path, tmp_path: Path
) -> None:
    base = world_with(tmp_path, tiny_base_folder, "x" * 76 + " cat")
    (warning,) = plan(base=base).warnings
    assert f"{tmp_path}/prompts.csv: 1 of 7 prompts are longer than the 75 tokens" in warning
    assert "row 2, column direct_prompt_1 (79 tokens, and what asks for 'cat' stands behind them)" in warning
    assert plan(base=base, concepts={"targets": ["bus"]}, evaluation={**EVALUATION, **FORGET_ONLY}).warnings == ()
    assert plan().warnings == ()


@pytest.mark.parametrize(
    ("images", "threshold", "warns"), [(9, "", True), (10, "", False), (1, "threshold: 0.3", False)]
)
def test_thresholds_that_would_be_fitted_on_too_few_images_are_named(
    plan: MakePlan, tmp_path: Path, images: int, threshold: str, warns: bool
) -> None:
    """`threshold_fit.MIN_IMAGES` is 10; a judge with a threshold of its own fits none."""
    judge = tmp_path / "few.yaml"
    judge.write_text(f"kind: clip\nsource: openai/clip-vit-large-patch14\ncalibration_images: {images}\n{threshold}\n")
    warnings = plan(evaluation={**EVALUATION, "judges": [str(judge)]}).warnings
    assert [("'few': calibration_images is 9, below 10" in warning) for warning in warnings] == [True] * warns


def test_a_prompt_that_says_nothing_to_the_text_encoder_is_refused(
    plan: MakePlan, tiny_base_folder: Path, tmp_path: Path
) -> None:
    base = world_with(tmp_path, tiny_base_folder, "<|endoftext|>")
    with pytest.raises(
        UserError, match=r"prompts.csv, row 2, column direct_prompt_1: the tokenizer of base 'tiny' knows"
    ):
        plan(base=base)


def test_a_phrase_longer_than_the_window_is_refused(plan: MakePlan, tiny_base_folder: Path, tmp_path: Path) -> None:
    write_campaign_inputs(tmp_path, tiny_base_folder)
    concepts = yaml.safe_load((tmp_path / "concepts.yaml").read_text())
    concepts["concepts"][3]["phrase"] = "t" * 76
    edit(tmp_path / "concepts.yaml", **concepts)
    with pytest.raises(
        UserError, match=r"concept set tiny: concept 'tram', phrase: a prompt with it has \d+ tokens, and "
    ):
        plan(base=str(tmp_path / "base.yaml"))


def test_what_a_driver_and_its_queue_know_of_tasks_loads_no_torch() -> None:
    """Dozens of processes of a cluster import it, which would have hundreds of megabytes each for nothing."""
    kinds = "attack, calibration, control, judging, metric, prompt_search, training"
    code = (
        f"import sys; from efface.cluster.tasks import {kinds}; from efface.cluster.campaign import plan;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
