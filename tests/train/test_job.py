"""What a job's id stands for, and what a job is refused for."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from efface.concepts.concept import ConceptSet
from efface.errors import JobFailure, UserError
from efface.files import content_id
from efface.models.base import Base
from efface.train.job import Job, make_job
from efface.train.method import get_method, parse_config
from efface.train.run_job import run_job

FIELDS: dict[str, Any] = {
    "base": "tiny",
    "base_id": "0" * 64,
    "method": "esd",
    "method_version": 1,
    "config": {"steps": 2},
    "concepts": ["cat"],
    "concept_set": "tests",
    "concept_set_sha256": "1" * 64,
    "strategy": "single",
    "seed": 0,
}


def test_the_id_is_the_hash_of_every_field_and_nothing_else() -> None:
    assert Job(**FIELDS).id == content_id(FIELDS)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"base_id": "2" * 64}, {"config": {"steps": 3}}, {"concepts": ["dog"]}, {"method_version": 2}],
)
def test_any_change_gives_another_id(change: dict[str, Any]) -> None:
    assert Job(**{**FIELDS, **change}).id != Job(**FIELDS).id


def test_the_request_before_is_part_of_the_id_where_there_is_one() -> None:
    chained = {**FIELDS, "strategy": "continual", "concepts": ["cat", "dog"], "parent": "2" * 16}
    assert Job(**chained).id == content_id(chained) != Job(**{**chained, "parent": "3" * 16}).id
    assert Job.model_validate(Job(**chained).model_dump(mode="json")) == Job(**chained)


def test_the_folders_name_is_readable_and_ends_in_the_id() -> None:
    job = Job(**{**FIELDS, "concepts": ["Van Gogh"]})
    assert job.slug == f"esd-van-gogh-{job.id}"


def test_names_are_found_and_the_config_is_filled_in(concept_set: ConceptSet) -> None:
    job = make_job("tiny", "0" * 64, "esd", concept_set, ["CAT"], config={"eta": 2})
    assert job.concepts == ("cat",) and job.config["eta"] == 2 and job.config["guidance_scale"] == 3
    assert make_job("tiny", "0" * 64, "esd", concept_set, ["cat"], config={"eta": 2.0}).id == job.id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concepts": ["cta"]}, r"unknown concept 'cta' .*did you mean 'cat'\?"),
        ({"concepts": []}, "concepts"),
        ({"concepts": ["cat", "dog"]}, "strategy 'single' takes one concept a job, not cat, dog"),
        ({"parent": "0" * 16}, "strategy 'single' starts from the base: parent is for 'continual'"),
        ({"strategy": "continual", "parent": "0" * 16}, "the first request of a chain has one concept and no parent"),
        ({"strategy": "continual", "concepts": ["cat", "dog"]}, "each later one has a parent"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(
    arguments: dict[str, Any], message: str, concept_set: ConceptSet
) -> None:
    wanted = {"concepts": ["cat"], "strategy": "single", **arguments}
    with pytest.raises(UserError, match=message):
        make_job("tiny", "0" * 64, "esd", concept_set, **wanted)


def test_a_strategy_that_the_method_does_not_know_is_refused(
    concept_set: ConceptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_method("esd"), "strategies", frozenset({"single", "multi"}))
    with pytest.raises(UserError, match="'esd' does not support the strategy 'continual', only multi, single"):
        make_job("tiny", "0" * 64, "esd", concept_set, ["cat"], strategy="continual")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_id": "f" * 64}, "is for a base with fingerprint ffff"),
        ({"method_version": 99}, "asks for version 99 of method 'esd', this efface has version 1"),
        ({"concept_set_sha256": "f" * 64}, "another version of concept set 'tests'"),
        ({"config": {"stepz": 3}}, "unknown key 'stepz', did you mean 'steps'"),
    ],
)
def test_a_job_that_does_not_fit_what_it_is_run_with_is_refused(
    change: dict[str, Any], message: str, quick_job: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    job = quick_job("esd").model_copy(update=change)
    with pytest.raises(UserError, match=message):
        run_job(job, tiny_base, concept_set)


@pytest.mark.parametrize("method", ["ca", "esd"])
def test_several_concepts_make_one_delta(method: str, tiny_base: Base, concept_set: ConceptSet, quick_job: Any) -> None:
    config = quick_job(method).config
    job = make_job("tiny", tiny_base.fingerprint, method, concept_set, ["cat", "fox"], config=config, strategy="multi")
    delta, metrics = run_job(job, tiny_base, concept_set)
    assert delta.provenance["job"]["concepts"] == ["cat", "fox"] and len(metrics.losses) == 2


@pytest.mark.parametrize(
    ("batch", "of_so_many", "runs_as"), [(4, 1, (2, 2)), (6, 3, (3, 6)), (3, 1, (1, 3)), (9, 1, (3, 3))]
)
def test_with_half_the_batch_a_step_has_as_many_samples_and_the_delta_says_so(
    batch: int, of_so_many: int, runs_as: tuple[int, int], quick_job: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    names = ("batch_size", "gradient_accumulation_steps")
    whole = quick_job("esd", **dict(zip(names, (batch, of_so_many), strict=True)))
    delta, metrics = run_job(whole, tiny_base, concept_set, reduce_micro_batch=True)
    assert delta.provenance["job_id"] == whole.id
    assert delta.provenance["reduced_micro_batch"] == dict(zip(names, runs_as, strict=True))
    assert metrics.samples_seen == 2 * batch * of_so_many
    smaller, _ = run_job(quick_job("esd", **dict(zip(names, runs_as, strict=True))), tiny_base, concept_set)
    assert all(value.equal(smaller.tensors[name]) for name, value in delta.tensors.items())


@pytest.mark.parametrize(
    ("method", "config"),
    [("uce", {"guide": "A  cat"}), ("esd", {"learning_rate": 1e-30}), ("fade", {"learning_rate": 1e-30})],
)
def test_an_edit_that_changes_nothing_is_a_failure_with_its_reason(
    method: str, config: dict[str, Any], quick_job: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    with pytest.raises(
        JobFailure, match=f"method '{method}' changed no weight .* nothing is forgotten: the anchor of cat "
    ):
        run_job(quick_job(method, **config), tiny_base, concept_set)


@pytest.mark.parametrize(("method", "config"), [("esd", {"batch_size": 1}), ("uce", {})])
def test_a_batch_that_cannot_be_halved_ends_the_job(
    method: str, config: dict[str, Any], quick_job: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    with pytest.raises(JobFailure, match=f"method '{method}' needs more memory than there is"):
        run_job(quick_job(method, **config), tiny_base, concept_set, reduce_micro_batch=True)


@pytest.mark.parametrize("text", ["a photo", "{} and {}", "{} {x}", "{name}", "{} }"])
@pytest.mark.parametrize(("method", "field"), [("salun", "template"), ("hirm", "templates"), ("fade", "prompt")])
def test_a_template_without_one_place_for_the_concept_is_refused(method: str, field: str, text: str) -> None:
    with pytest.raises(UserError, match=rf"{field}.* once"):
        parse_config(method, {field: [text] if field == "templates" else text})


def test_models_that_a_config_names_by_folder_are_part_of_the_job_by_what_they_hold(
    tiny_base: Base, concept_set: ConceptSet, tmp_path: Path
) -> None:
    for name in ("detector", "segmenter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "any"}')
        (tmp_path / name / "model.safetensors").write_bytes(safetensors.torch.save({"w": torch.zeros(2)}))
    config = {"detector": str(tmp_path / "detector"), "segmenter": str(tmp_path / "segmenter")}

    def job(**masks: str) -> Job:
        settings = {**config, **masks}
        return make_job("tiny", tiny_base.fingerprint, "mace", concept_set, ["cat"], config=settings)

    before = job()
    assert job().id == before.id and before.models.keys() == {"detector", "segmenter"}
    (tmp_path / "segmenter" / "model.safetensors").write_bytes(safetensors.torch.save({"w": torch.ones(2)}))
    after = job()
    assert after.id != before.id and after.models["detector"] == before.models["detector"]
    with pytest.raises(UserError, match="was made for another segmenter than its folder holds now"):
        run_job(before, tiny_base, concept_set)
    assert job(masks="attention").models == {} and "models" not in job(masks="attention").model_dump(mode="json")
    composed = {"edits": [{"method": "mace", "config": config}]}
    both = make_job("tiny", tiny_base.fingerprint, "compose", concept_set, ["cat"], config=composed)
    assert both.models == after.models
