"""What a method may see of words and captions that no concept set gives it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from efface.concepts.concept import Concept, ConceptSet
from efface.models.base import Base
from efface.train.data.vocabulary import VocabularyConfig, candidates
from efface.train.job import Job
from efface.train.method import UnlearningTask
from efface.train.methods.uce import UCE
from efface.train.run_job import run_job


def test_a_frequent_word_that_names_what_is_held_out_is_no_candidate(
    tiny_base: Base, concept_set: ConceptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = {f"{word}</w>": number for number, word in enumerate(("tree", "house", "owl", "river"))}
    monkeypatch.setattr(tiny_base.tokenizer, "get_vocab", lambda: vocabulary)
    cat, config = concept_set.find("cat"), VocabularyConfig(centres=0)
    task = UnlearningTask(tiny_base, (cat,), concept_set, seed=0)
    words, rows = candidates(task, cat, config)
    assert sorted(words) == ["house", "owl", "river", "tree"]
    without, fewer = candidates(replace(task, names_held_out=lambda text: text == words[1]), cat, config)
    assert without == [words[0], *words[2:]] and len(fewer) == len(rows) - 1


@pytest.mark.parametrize(
    ("target", "seen"), [("cat", ["an owl", "bystanders"]), ("bystander", ["an owl", "Onlookers", "bystanders"])]
)
def test_a_job_leaves_out_texts_that_name_what_is_held_out_by_any_name(
    target: str,
    seen: list[str],
    quick_job: Callable[..., Job],
    tiny_base: Base,
    concept_set: ConceptSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bystander = Concept(
        name="bystander", kind="animal", phrase="an owl", anchor="a pet", aliases=("onlookers",), held_out=True
    )
    whole = ConceptSet(name="tests", version=1, concepts=(*concept_set.concepts, bystander))
    tasks: list[UnlearningTask] = []
    solve = UCE.solve

    def record(self: UCE, task: UnlearningTask) -> Any:
        tasks.append(task)
        return solve(self, task)

    monkeypatch.setattr(UCE, "solve", record)
    job = quick_job("uce").model_copy(update={"concept_set_sha256": whole.sha256, "concepts": (target,)})
    run_job(job, tiny_base, whole)
    assert tasks[0].may_see(["an owl", "Onlookers", "bystanders"]) == seen
