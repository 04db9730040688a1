"""The attacks of a campaign: each on every model, for every concept that it forgot, and their prompts on all models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from efface.cluster.campaign.spec import AttackChoice
from efface.cluster.tasks.attack import AttackTask, TransferTask
from efface.cluster.tasks.control import ControlTask
from efface.cluster.tasks.model import NOT_FETCHED, Model
from efface.cluster.tasks.task import Task
from efface.concepts.concept import ConceptSet
from efface.concepts.prompts import PromptSet
from efface.errors import UserError
from efface.eval.attack import ATTACKS, attack_id, parse_attack_config
from efface.eval.attack_target import attack_target
from efface.eval.attacking.attack_control import CONTROL
from efface.models.files.hub import find_delta

if TYPE_CHECKING:
    from efface.models.delta import Delta


def plan_attacks(
    choices: Sequence[AttackChoice],
    models: Sequence[Model],
    concept_set: ConceptSet,
    prompts: PromptSet,
    judged_by: tuple[str, ...],
) -> Iterator[Task]:
    """Attacks, their controls, then what their prompts do on the other models. judged_by: see `AttackTask`.

    A chain of requests is attacked after its last one. Static attacks are tried on the base too, which shows what their
    prompts are worth. Raises UserError for an unknown attack, a config or a file that is none of it, and for one attack
    named twice, and for a control that is none.
    """
    attacks: dict[str, AttackTask] = {}
    controls: dict[str, ControlTask] = {}
    followed = {model.predecessor for model in models}
    last = [model for model in models if model.job and model.folder not in followed]
    forgotten = tuple(dict.fromkeys(name for model in last if model.job for name in model.job.concepts))
    for choice in choices:
        parsed = parse_attack_config(choice.attack, choice.config)
        what = choice.attack, parsed.model_dump(mode="json"), attack_id(choice.attack, parsed)
        control = read_control(choice.control, models).id if choice.control else None
        static = ATTACKS.get(choice.attack).kind == "static"
        for model in (*models[:1], *last) if static else last:
            for name in model.job.concepts if model.job else forgotten:
                target = attack_target(concept_set.find(name), concept_set, prompts)
                instances = tuple(
                    (prompt, seed) for prompt in target.prompts[: choice.prompts] for seed in choice.seeds
                )
                task = AttackTask(model, target, *what, instances, choice.budget, choice.seed, judged_by)
                if task.id in attacks:
                    raise UserError(
                        f"attacks names '{choice.attack}' twice with the same settings, should name it once"
                    )
                attacks[task.id] = task
                if control and model.job:
                    about = (models[0], target, *what, instances, choice.budget, choice.seed, judged_by)
                    taught = ControlTask(*about, control)
                    controls[taught.id] = taught
    yield from attacks.values()
    yield from controls.values()
    for model in (*models[:1], *last) if attacks else ():
        own = model.job.concepts if model.job else forgotten
        of_others = tuple(
            attack for attack in attacks.values() if attack.model.folder != model.folder and attack.concept in own
        )
        if of_others:
            yield TransferTask(model, of_others)


def read_control(name: str, models: Sequence[Model]) -> Delta:
    """A campaign's control. Raises UserError where it is no delta, of another base, or where a method is called so."""
    from efface.models.delta import Delta

    path, base_id = find_delta(name), models[0].base_id
    try:
        delta = Delta.load(path)
    except UserError as error:
        hint = "`efface evaluate MODEL --concept CONCEPT` leaves one of a whole model, as jobs/*/delta.safetensors"
        raise UserError(f"attacks, control: {error}; a control has to be a delta, {hint}") from None
    made_from = delta.provenance.get("base_id") or (delta.provenance.get("job") or {}).get("base_id")
    if base_id != NOT_FETCHED and made_from not in (None, base_id):
        raise UserError(f"{path}: is a control of another base ({str(made_from)[:16]}), should be of {base_id[:16]}")
    if any(model.label == CONTROL for model in models):
        raise UserError(f"a method is called '{CONTROL}' as the control of an attack is, give it another label")
    return delta
