"""The attacks of a campaign: each on every model, for every concept that it forgot, and their prompts on all models."""

from collections.abc import Iterator, Sequence

from efface.cluster.campaign.spec import AttackChoice
from efface.cluster.tasks.attack import AttackTask, TransferTask
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import Task
from efface.concepts.concept import ConceptSet
from efface.concepts.prompts import PromptSet
from efface.errors import UserError
from efface.eval.attack import ATTACKS, attack_id, parse_attack_config
from efface.eval.attack_target import attack_target


def plan_attacks(
    choices: Sequence[AttackChoice],
    models: Sequence[Model],
    concept_set: ConceptSet,
    prompts: PromptSet,
    judged_by: tuple[str, ...],
) -> Iterator[Task]:
    """Attacks, then what their prompts do on the other models. judged_by: see `AttackTask`.

    A chain of requests is attacked after its last one. Static attacks are tried on the base too, which shows what their
    prompts are worth. Raises UserError for an unknown attack, a config or a file that is none of it, and for one attack
    named twice.
    """
    attacks: dict[str, AttackTask] = {}
    followed = {model.predecessor for model in models}
    last = [model for model in models if model.job and model.folder not in followed]
    forgotten = tuple(dict.fromkeys(name for model in last if model.job for name in model.job.concepts))
    for choice in choices:
        parsed = parse_attack_config(choice.attack, choice.config)
        what = choice.attack, parsed.model_dump(mode="json"), attack_id(choice.attack, parsed)
        static = ATTACKS.get(choice.attack).kind == "static"
        for model in (*models[:1], *last) if static else last:
            for name in model.job.concepts if model.job else forgotten:
                target = attack_target(concept_set.find(name), concept_set, prompts)
                asked = tuple((prompt, seed) for prompt in target.prompts[: choice.prompts] for seed in choice.seeds)
                task = AttackTask(model, target, *what, asked, choice.budget, choice.seed, judged_by)
                if task.id in attacks:
                    raise UserError(
                        f"attacks names '{choice.attack}' twice with the same settings, should name it once"
                    )
                attacks[task.id] = task
    yield from attacks.values()
    for model in (*models[:1], *last) if attacks else ():
        own = model.job.concepts if model.job else forgotten
        of_others = tuple(
            attack for attack in attacks.values() if attack.model.folder != model.folder and attack.concept in own
        )
        if of_others:
            yield TransferTask(model, of_others)
