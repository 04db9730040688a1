"""`efface attack MODEL…`: an attack on models that exist, in this process, and on one that never knew the concept."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import UserError
from efface.launch.arguments.key_values import parse_key_values

if TYPE_CHECKING:
    from efface.concepts.concept import ConceptSet
    from efface.eval.attacking.attack_control import ControlComparison
    from efface.eval.attacking.attack_result import AttackResult
    from efface.launch.commands.attack import AttackOptions
    from efface.models.base import Base
    from efface.models.delta import Delta

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackResults:
    """What the attack came to, by model and concept."""

    results: "list[AttackResult]"
    comparisons: "list[ControlComparison]" = field(default_factory=list)
    """Of each with the control, where there is one."""

    def show(self) -> None:
        """A table, and what is to be known before it is believed."""
        from efface.eval.attacking.attack_table import attack_rows, attack_table
        from efface.launch.terminal.tables import console, print_line

        rows = attack_rows(self.results)
        console().print(attack_table(rows))
        for row in rows:
            if row.remark:
                print_line(f"{row.attack} on {row.method}: {row.remark}")
        for comparison in self.comparisons:
            print_line(comparison.line)

    def as_json(self) -> list[dict[str, Any]]:
        """Every instance of every result; and where there is a control, what it says of the result."""
        against = {(one.method, one.concept): one.model_dump(mode="json") for one in self.comparisons}
        results = [(result, against.get((result.method, result.concept))) for result in self.results]
        return [
            {**result.model_dump(mode="json"), **({"control": control} if control else {})}
            for result, control in results
        ]


def attack_models(options: "AttackOptions") -> AttackResults:
    """Attack each delta for each of its concepts (or those that are named), by a static attack the base too.

    Raises UserError, before it begins.
    """
    from efface.concepts.concept import load_concept_set
    from efface.concepts.prompts import load_prompt_set
    from efface.eval.attack import ATTACKS, parse_attack_config
    from efface.eval.attack_target import attack_target
    from efface.eval.attacking.attack_control import CONTROL, compare, shown_others
    from efface.eval.attacking.attack_run import AttackedModel, run_attack
    from efface.eval.judging.judge_spec import load_judge
    from efface.eval.oracle import Instance
    from efface.launch.arguments.device import resolve_device
    from efface.models.base import load_base, read_base
    from efface.models.delta import Delta
    from efface.models.files.hub import find_delta
    from efface.models.recipe import load_recipe

    if options.out:
        raise UserError("--out is for the prompt file of an attack on the base; with models, use --json")
    config = parse_attack_config(options.attack, parse_key_values(options.settings))
    spec = read_base(options.base)
    named = {
        "--concepts": options.concepts or spec.concepts,
        "--prompts": options.prompts or spec.prompts,
    }
    of_set = load_concept_set(named["--concepts"]).judge if named["--concepts"] else None
    named["--judge"] = options.judge or of_set or spec.judge
    for option, value in named.items():
        if not value:
            raise UserError(f"base '{options.base}' names none of its own, so {option} must be given")
    concept_set = load_concept_set(str(named["--concepts"]))
    prompt_set = load_prompt_set(str(named["--prompts"]), concept_set)
    paths = [find_delta(model) for model in options.models]
    deltas = {path: Delta.load(path) for path in paths}
    forgotten = {path: options.concept or _forgotten(path, delta) for path, delta in deltas.items()}
    targets = {
        name: attack_target(concept_set.find(name), concept_set, prompt_set)
        for names in forgotten.values()
        for name in names
    }
    device = resolve_device(options.device)
    judge = load_judge(str(named["--judge"]), device)
    judge.check([target.concept for target in targets.values()])
    base = load_base(spec, device)
    recipe = load_recipe(spec.recipe)

    def attacked(delta: "Delta | None", name: str, method: str) -> "AttackResult":
        result = run_attack(
            ATTACKS.get(options.attack)(base, config),
            options.attack,
            AttackedModel(base, delta, recipe, delta.id if delta else "base", method),
            judge,
            targets[name],
            [Instance(targets[name].prompts[0], seed) for seed in range(options.images)],
            budget=options.budget,
            seed=options.seed,
        )
        logger.info("%s, %s: %s", method, name, result.ends)
        return result

    controls, shows = {}, {}
    if options.control:
        delta = _control(options.control, base, concept_set, list(targets))
        for name, target in targets.items():
            shows[name] = shown_others(base, delta, recipe, judge, target.concept, concept_set, prompt_set)
            controls[name] = attacked(delta, name, CONTROL)
    results = [attacked(delta, name, path.stem) for path, delta in deltas.items() for name in forgotten[path]]
    static = ATTACKS.get(options.attack).kind == "static"
    of_base = [attacked(None, name, "base") for name in targets] if static else []
    base.swap(None)
    comparisons = [
        compare(result, controls[result.concept], shows[result.concept])
        for result in results
        if result.concept in controls
    ]
    return AttackResults([*of_base, *results, *controls.values()], comparisons)


def _control(path: Path, base: "Base", concept_set: "ConceptSet", concepts: list[str]) -> "Delta":
    """The model in `path` as a delta. Raises UserError where it is neither a delta nor a model of the base's kind."""
    from efface.eval.attacking.attack_control import CONTROL
    from efface.models.delta import Delta
    from efface.train.foreign_delta import foreign_delta

    if path.is_file():
        try:
            return Delta.load(path)
        except UserError:
            pass  # not one of ours, so somebody else's checkpoint
    return foreign_delta(path, base, concept_set, concepts, CONTROL)


def _forgotten(path: Path, delta: "Delta") -> list[str]:
    """The concepts that a delta was made to forget. Raises UserError where it does not say."""
    job = delta.provenance.get("job")
    concepts = job.get("concepts") if isinstance(job, dict) else None
    if not concepts:
        raise UserError(f"{path}: names no job, so it is not known what it should have forgotten; give --concept")
    return [str(name) for name in concepts]
