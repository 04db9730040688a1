"""Attacks as work of a campaign: planned, done, recorded, resumed, and shown apart from the ERR."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_campaign import UCE

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run
from efface.cluster.run_content import read_run
from efface.cluster.run_results import Results
from efface.cluster.storage.journal import TaskEnded, read_journal
from efface.cluster.tasks.attack import ATTACK, AttackTask, TransferTask
from efface.cluster.tasks.control import ControlTask
from efface.cluster.tasks.model import BASE
from efface.cluster.tasks.retry_rules import MAX_WORKER_LOSSES, Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.workers.worker import Worker
from efface.errors import UserError
from efface.eval.attack import ATTACKS
from efface.eval.attacking.attack_table import attack_rows
from efface.eval.attacking.attack_transfer import Transferred
from efface.models.base import load_base, read_base
from efface.models.delta import Delta

MakePlan = Callable[..., Plan]
PARAPHRASE = {"attack": "paraphrase", "config": {"templates": ["see {}"]}, "seeds": [0, 1], "budget": 40}
ATTACKED: dict[str, Any] = {
    "methods": [UCE, {**UCE, "label": "uce-2", "config": {"ridge": 0.7}}],
    "attacks": [PARAPHRASE],
}


def test_every_model_is_attacked_for_each_concept_it_forgot_and_tried_with_what_was_found_on_others(
    plan: MakePlan,
) -> None:
    made = plan(**ATTACKED, strategy="multi", concepts={"targets": ["cat", "bus"]})
    attacks = made.of_kind(AttackTask)
    labels = [model.label for model in made.jobs]
    # a static attack is tried on the base too
    assert [(task.label, task.concept) for task in attacks] == [(m, c) for m in (BASE, *labels) for c in ("cat", "bus")]
    assert attacks[0].instances == (("a cat", 0), ("a cat", 1))
    for task in attacks:
        assert task.requires == (task.model.folder, made.calibrations[0].id)
    transfers = made.of_kind(TransferTask)
    assert [task.label for task in transfers] == [BASE, *labels]
    for task in transfers:
        assert all(attack.model.folder != task.model.folder for attack in task.attacks)
        assert set(task.requires) == {task.model.folder, *(attack.id for attack in task.attacks)}


def test_ids_are_made_of_model_attack_config_budget_and_seeds(plan: MakePlan) -> None:
    def ids(**changes: Any) -> set[str]:
        return {task.id for task in plan(**{**ATTACKED, "attacks": [{**PARAPHRASE, **changes}]}).of_kind(AttackTask)}

    assert ids() == ids() and len(ids()) == 3
    for changes in (
        {"budget": 41},
        {"seeds": [0]},
        {"seed": 1},
        {"config": {}},
        {"attack": "noise-scale", "config": {}},
    ):
        assert not ids() & ids(**changes)


def test_ids_are_made_of_the_attacks_version_and_of_the_files_that_it_reads(
    plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mma.csv"
    published = {"attack": "published", "config": {"file": str(file)}, "seeds": [0]}

    def ids() -> set[str]:
        made = plan(methods=[UCE], attacks=[published])
        return {task.id for task in made.of_kind(AttackTask)}

    file.write_text("adv_prompt\nfog of war\n")
    before = ids()
    assert before == ids()
    file.write_text("adv_prompt\nfog of peace\n")
    assert not before & ids()
    changed = ids()
    monkeypatch.setattr(ATTACKS.get("published"), "version", 2)
    assert not changed & ids()
    with pytest.raises(UserError, match="nowhere"):
        plan(methods=[UCE], attacks=[{**published, "config": {"file": str(tmp_path / "nowhere.csv")}}])


def test_a_chain_is_attacked_after_its_last_request(plan: MakePlan) -> None:
    evaluation = {"images_per_prompt": 1, "prompts_per_concept": {"adjacent": 0, "retain": 1}}
    targets = {"targets": ["cat", "dog"]}
    made = plan(methods=[UCE], attacks=[PARAPHRASE], strategy="continual", concepts=targets, evaluation=evaluation)
    attacked = [(task.label, task.concept) for task in made.of_kind(AttackTask)]
    assert attacked == [(label, concept) for label in (BASE, made.jobs[-1].label) for concept in ("cat", "dog")]


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        ({"attack": "paraphrases"}, "unknown attack 'paraphrases': did you mean 'paraphrase'?"),
        (
            {"attack": "p4d", "config": {"token": 3}},
            "config of attack 'p4d': unknown key 'token', did you mean 'tokens'?",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    attack: dict[str, Any], expected: str, plan: MakePlan
) -> None:
    with pytest.raises(UserError) as said:
        plan(methods=[UCE], attacks=[attack])
    assert str(said.value).startswith(expected)


def test_an_attack_is_named_once(plan: MakePlan) -> None:
    spelled_out = {**PARAPHRASE, "seed": 0}  # the default
    with pytest.raises(UserError, match="attacks names 'paraphrase' twice"):
        plan(methods=[UCE], attacks=[PARAPHRASE, spelled_out])
    assert len(plan(methods=[UCE], attacks=[PARAPHRASE, {**PARAPHRASE, "seed": 1}]).of_kind(AttackTask)) == 4


def test_a_run_records_what_attacks_cost_and_shows_them_apart(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    run = open_run(campaign(**ATTACKED), tmp_path / "run")
    console = Console(file=io.StringIO(), width=200)
    results = execute(run, 0, None, console)
    assert [row.method for row in results.attacks] == ["base", "uce", "uce-2"]
    results.show(console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "post-ASR static" in shown and "post-ASR adaptive" in shown
    scores = json.loads(run.folder.scores.read_text())
    assert scores["adversarial_axis"]["kind"] == "given"  # by a CSV of the user
    assert [(a["attack"], a["kind"], a["budget"]) for a in scores["attacks"]] == [("paraphrase", "static", 40)] * 3
    assert {row["source"] for row in scores["transfers"]} == {"base", "uce", "uce-2"}
    rows = list(csv.DictReader(io.StringIO(run.folder.attacks.read_text())))
    assert rows[0]["static_post_asr"] != "" and rows[0]["adaptive_post_asr"] == ""
    content = read_run(tmp_path / "run")
    assert sorted(attack_rows(content.attacks), key=lambda row: row.method) == results.attacks
    assert sorted(row.model_dump_json() for row in content.transfers) == sorted(
        Transferred(**row).model_dump_json() for row in scores["transfers"]
    )
    assert all(model.layers for model in content.models)
    task = run.plan.of_kind(AttackTask)[-1]
    record = run.folder.record(task)
    assert record and record.seconds and 0 < record.facts["calls"] <= 40
    # what is gone is done again, and comes to the same
    before = json.loads(run.folder.output(task, ATTACK).read_text())
    run.folder.record_file(task).unlink()
    assert [left.id for left in run.remaining_tasks.tasks] == [task.id]
    execute(run, 0, None, console)
    after = json.loads(run.folder.output(task, ATTACK).read_text())
    for one in (before, after):
        one.pop("seconds")
        for instance in one["instances"]:
            instance.pop("seconds")
    assert before == after


class KilledWorker(BaseException):
    """What ends a worker in the middle of an attack."""


def run_with_losses(campaign: Campaign, root: Path, losses: int) -> tuple[Run, Results]:
    """The campaign, where the worker of UCE's attack is killed so many times, each time after its first instance."""
    left = iter(range(losses))

    class Mortal(Worker):
        def run(self, task: Task) -> Outcome:
            self.dies = isinstance(task, AttackTask) and task.label == "uce" and next(left, None) is not None
            try:
                return super().run(task)
            except KilledWorker:
                return Outcome.worker_lost("killed")

        def on_step(self, task: Task, done: int, steps: int, loss: float) -> None:
            if self.dies:
                raise KilledWorker
            super().on_step(task, done, steps, loss)

    opened = open_run(campaign, root)
    return opened, execute(opened, 0, None, Console(file=io.StringIO()), Mortal)


def attack_of_uce(run: Run) -> AttackTask:
    return next(task for task in run.plan.of_kind(AttackTask) if task.label == "uce")


def test_an_attack_whose_worker_is_killed_is_tried_again_and_comes_to_the_same(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    attacked = campaign(methods=[UCE], attacks=[PARAPHRASE])
    _, expected = run_with_losses(attacked, tmp_path / "calm", 0)
    run, results = run_with_losses(attacked, tmp_path / "run", 2)
    task = attack_of_uce(run)
    states = [event.state for event in read_journal(run.folder) if isinstance(event, TaskEnded) and event.id == task.id]
    assert states == ["worker_lost", "worker_lost", "done"]
    timeless = [
        [(row.method, row.pre_asr, row.static_post_asr, row.judged, row.unknown, row.calls) for row in found.attacks]
        for found in (expected, results)
    ]
    assert timeless[0] == timeless[1] and not results.failures
    (lost,) = [row.note for row in results.attacks if row.method == "uce"]
    assert "no result" not in lost


def test_an_attack_that_never_ends_is_missing_and_no_erased_concept(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    attacked = campaign(methods=[UCE], attacks=[PARAPHRASE])
    run, results = run_with_losses(attacked, tmp_path / "run", MAX_WORKER_LOSSES)
    assert run.folder.record(attack_of_uce(run)) is None
    (row,) = [row for row in results.attacks if row.method == "uce"]
    assert (row.pre_asr, row.static_post_asr, row.adaptive_post_asr, row.judged) == (None, None, None, 0)
    assert "1 of 1 attacks have no result" in row.note
    assert any("killed" in str(failure) for failure in results.failures)
    scores = json.loads(run.folder.scores.read_text())
    assert [one["method"] for one in scores["attacks"]] == ["base"]


@pytest.fixture
def control(campaign_inputs: Path, tmp_path: Path) -> Path:
    """A delta that changes one tensor of the base."""
    base = load_base(read_base(str(campaign_inputs / "base.yaml")))
    name = next(name for name in base.tensors() if name.endswith("attn2.to_k.weight"))
    delta = Delta("weights", {name: base.tensors()[name] * 1.01}, {"base_id": base.fingerprint})
    path = tmp_path / "never-knew.safetensors"
    delta.save(path)
    return path


def test_a_control_is_attacked_like_the_models_and_each_is_compared_with_it(
    campaign: Callable[..., Campaign], control: Path, tmp_path: Path
) -> None:
    requested = campaign(methods=[UCE], attacks=[{**PARAPHRASE, "control": str(control)}])
    run = open_run(requested, tmp_path / "run")
    control.rename(tmp_path / "elsewhere.safetensors")  # what workers need of it is in the run folder
    console = Console(file=io.StringIO(), width=200)
    results = execute(run, 0, None, console)
    (task,) = run.plan.of_kind(ControlTask)
    shared = [(one.target.id, one.instances, one.budget) for one in run.plan.of_kind(AttackTask)]
    assert len(shared) == 3 and len(set(shared)) == 1  # base, uce and control
    (comparison,) = results.controls
    assert (comparison.method, comparison.attack, comparison.concept) == ("uce", "paraphrase", task.concept)
    found = {one.method: one for one in results.attacks}
    assert comparison.post_asr == found["uce"].static_post_asr
    assert comparison.control_post_asr == found["control"].static_post_asr
    assert comparison.control_shows is not None
    results.show(console)
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert comparison.sentence in shown
    assert json.loads(run.folder.scores.read_text())["controls"] == [comparison.model_dump(mode="json")]
    (tmp_path / "elsewhere.safetensors").rename(control)
    assert read_run(tmp_path / "run").controls == (comparison,)


def test_an_attack_is_the_same_work_with_a_control_and_without(plan: MakePlan, control: Path) -> None:
    def ids(attack: dict[str, Any]) -> list[str]:
        return [t.id for t in plan(methods=[UCE], attacks=[attack]).of_kind(AttackTask) if t.kind == "attack"]

    assert ids(PARAPHRASE) == ids({**PARAPHRASE, "control": str(control)})
    (other := control.with_name("other.safetensors")).write_text("no delta")
    with pytest.raises(UserError, match="a control has to be a delta"):
        plan(methods=[UCE], attacks=[{**PARAPHRASE, "control": str(other)}])
    with pytest.raises(UserError, match="a method is called 'control'"):
        plan(methods=[{**UCE, "label": "control"}], attacks=[{**PARAPHRASE, "control": str(control)}])
