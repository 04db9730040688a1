"""`efface attack MODEL…`: an attack on models that exist, in this process; and what was found on each of the others."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import UserError
from efface.launch.key_values import parse_key_values

if TYPE_CHECKING:
    from efface.eval.attack_run import AttackResult
    from efface.launch.commands.attack import AttackOptions
    from efface.models.delta import Delta

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackedModels:
    """What the attack came to, by model and concept."""

    results: "list[AttackResult]"

    def show(self) -> None:
        """A table, and what is to be known before it is believed."""
        from efface.eval.attack_table import attack_rows, attack_table
        from efface.launch.tables import console, print_line

        rows = attack_rows(self.results)
        console().print(attack_table(rows))
        for row in rows:
            if row.note:
                print_line(f"{row.attack} on {row.method}: {row.note}")

    def as_json(self) -> list[dict[str, Any]]:
        """Every instance of every result."""
        return [result.model_dump(mode="json") for result in self.results]


def attack_models(options: "AttackOptions") -> AttackedModels:
    """Attack each delta for each of its concepts (or those that are named). Raises UserError, before it begins."""
    from efface.concepts.concept import load_concept_set
    from efface.concepts.prompts import load_prompt_set
    from efface.eval.attack import ATTACKS, parse_attack_config
    from efface.eval.attack_run import run_attack
    from efface.eval.attack_target import attack_target
    from efface.eval.judge_spec import load_judge
    from efface.eval.oracle import Instance
    from efface.launch.device import resolve_device
    from efface.models.base import load_base, read_base
    from efface.models.delta import Delta
    from efface.models.hub import find_delta
    from efface.models.recipe import load_recipe

    if options.out:
        raise UserError("--out is for the prompt file of an attack on the base; with models, use --json")
    config = parse_attack_config(options.attack, parse_key_values(options.settings))
    spec = read_base(options.base)
    named = {
        "--concepts": options.concepts or spec.concepts,
        "--prompts": options.prompts or spec.prompts,
        "--judge": options.judge or spec.judge,
    }
    for option, value in named.items():
        if not value:
            raise UserError(f"base '{options.base}' names none of its own, so {option} must be given")
    concept_set = load_concept_set(str(named["--concepts"]))
    prompt_set = load_prompt_set(str(named["--prompts"]), concept_set)
    paths = [find_delta(model) for model in options.models]
    deltas = {path: Delta.load(path) for path in paths}
    asked = {path: options.concept or _forgotten(path, delta) for path, delta in deltas.items()}
    targets = {
        name: attack_target(concept_set.find(name), concept_set, prompt_set)
        for names in asked.values()
        for name in names
    }
    device = resolve_device(options.device)
    judge = load_judge(str(named["--judge"]), device)
    judge.check([target.concept for target in targets.values()])
    base = load_base(spec, device)
    results = []
    for path, delta in deltas.items():
        for name in asked[path]:
            instances = [Instance(targets[name].prompts[0], seed) for seed in range(options.images)]
            result = run_attack(
                ATTACKS.get(options.attack)(base, config),
                options.attack,
                base,
                delta,
                load_recipe(spec.recipe),
                judge,
                targets[name],
                instances,
                options.budget,
                options.seed,
                model=delta.id,
                method=path.stem,
            )
            logger.info("%s, %s: %s", path, name, result.ends)
            results.append(result)
    base.swap(None)
    return AttackedModels(results)


def _forgotten(path: Path, delta: "Delta") -> list[str]:
    """The concepts that a delta was made to forget. Raises UserError where it does not say."""
    job = delta.provenance.get("job")
    concepts = job.get("concepts") if isinstance(job, dict) else None
    if not concepts:
        raise UserError(f"{path}: names no job, so it is not known what it should have forgotten; give --concept")
    return [str(name) for name in concepts]
