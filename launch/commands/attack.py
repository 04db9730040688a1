"""`efface attack`: an attack on edited models; without one, adversarial prompts for a prompt set, found on the base."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.errors import UserError
from efface.files import content_id, local_path, slug, unless_taken, write_atomic
from efface.launch.arguments.key_values import parse_key_values
from efface.launch.arguments.options import (
    DELTA,
    LOCAL,
    BaseOption,
    ConceptsOption,
    DeviceOption,
    ForceOption,
    PromptsOption,
)
from efface.launch.arguments.output_files import check_output
from efface.launch.command import Command
from efface.launch.terminal.tables import print_line

if TYPE_CHECKING:
    from efface.eval.attacking.adversarial_prompts import KeptPrompt
    from efface.launch.attack_models import AttackResults

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """Attack edited models; or without one, search prompts against a base and write its prompt file with them."""

    models: Annotated[
        list[str],
        typer.Argument(help="Deltas to attack, as files or hub ids; default: none, a search on the base.", **DELTA),
    ] = field(default_factory=list)
    base: BaseOption = "miniature"
    concepts: ConceptsOption = None
    prompts: PromptsOption = None
    concept: Annotated[list[str], typer.Option("--concept", "-c", help="Only for this concept; repeatable.")] = field(
        default_factory=list
    )
    attack: Annotated[str, typer.Option(help="An attack of `efface attacks`.")] = "token-search"
    settings: Annotated[
        list[str],
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="A field of the attack's config; repeatable."),
    ] = field(default_factory=list)
    control: Annotated[
        Path | None,
        typer.Option(
            help="A model that never knew the concept (a delta, or a diffusers folder), attacked like the others: does "
            "the attack find the concept, or teach it?",
            **LOCAL,
        ),
    ] = None
    judge: Annotated[
        str | None,
        typer.Option(help="Keeps what shows the concept in the base's images; default: the base's own."),
    ] = None
    per_concept: Annotated[int, typer.Option(min=1, help="Prompts for each concept, at most.")] = 5
    budget: Annotated[int, typer.Option(min=1, help="Model calls for each model and concept.")] = 20_000
    images: Annotated[
        int, typer.Option(min=1, help="Image seeds of the direct prompt that a model is attacked at.")
    ] = 4
    seed: Annotated[int, typer.Option(help="Same seed, same prompts.")] = 0
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The prompt CSV to write; default: adversarial-BASE-ID.csv.", **LOCAL),
    ] = None
    force: ForceOption = False
    device: DeviceOption = "auto"


@dataclass(frozen=True)
class WrittenPrompts:
    """The prompt file that was written, and the adversarial prompts that were found for each concept."""

    path: Path
    found: dict[str, tuple["KeptPrompt", ...]]


def run(options: AttackOptions) -> "WrittenPrompts | AttackResults":
    """Attack the models that are named; without any, search prompts. Raises UserError, before anything is computed."""
    if options.models:
        from efface.launch.attack_models import attack_models

        return attack_models(options)
    if options.control:
        raise UserError("--control is for an attack on models, name a delta to attack")
    return search_prompts(options)


def search_prompts(options: AttackOptions) -> WrittenPrompts:
    """Write the prompt set with the adversarial prompts of the named concepts (default: all) replaced.

    Raises UserError, before anything is computed.
    """
    from efface.concepts.concept import load_concept_set
    from efface.concepts.prompts import PromptSet, load_prompt_set
    from efface.eval.attack import parse_attack_config, prompt_attack
    from efface.eval.attacking.adversarial_prompts import PromptChecker, adversarial_prompts
    from efface.eval.judging.judge_spec import load_judge
    from efface.launch.arguments.device import resolve_device
    from efface.models.base import base_id, load_base, read_base
    from efface.models.recipe import load_recipe
    from efface.models.text.tokenizer import check_texts

    attack = prompt_attack(options.attack)
    config = parse_attack_config(options.attack, parse_key_values(options.settings))
    spec = read_base(options.base)
    names = {"--concepts": options.concepts or spec.concepts, "--prompts": options.prompts or spec.prompts}
    for option, value in names.items():
        if not value:
            raise UserError(f"base '{options.base}' names none of its own, so {option} must be given")
    concept_set = load_concept_set(str(names["--concepts"]))
    prompt_set = load_prompt_set(str(names["--prompts"]), concept_set)
    targets = [concept_set.find(name) for name in options.concept] or list(concept_set.concepts)
    missing = [target.name for target in targets if target.name not in prompt_set.rows]
    if missing:
        raise UserError(f"{prompt_set.name}: has no row for {missing[0]}, add one with its direct prompts")
    judge_name = options.judge or concept_set.judge or spec.judge
    target_names = [target.name for target in targets]
    search = [options.attack, config.model_dump(mode="json"), judge_name, options.per_concept, options.seed]
    id = content_id([base_id(spec), concept_set.sha256, prompt_set.sha256, target_names, *search])
    out = local_path(options.out or f"adversarial-{slug(spec.name)}-{id}.csv")
    inputs = {
        "the base": spec.source,
        "the base's YAML": options.base,
        "the prompt set": names["--prompts"],
        "the concept set": names["--concepts"],
    }
    check_output(out, inputs=inputs, force=options.force)
    texts = {text for target in targets for _, text in prompt_set.rows[target.name].prompts("direct")}
    for warning in check_texts(spec, concept_set, prompt_set, texts):
        logger.warning("%s", warning)
    device = resolve_device(options.device)

    def on_concept(name: str, kept: Sequence["KeptPrompt"]) -> None:
        logger.info("%s: %d of %d", name, len(kept), options.per_concept)

    base = load_base(spec, device)
    found = adversarial_prompts(
        attack(base, config),
        concept_set,
        prompt_set,
        PromptChecker(base, load_recipe(spec.recipe), load_judge(judge_name, device)) if judge_name else None,
        per_concept=options.per_concept,
        seed=options.seed,
        targets=targets,
        on_concept=on_concept,
    )
    rows = dict(prompt_set.rows)
    for name, kept in found.items():
        rows[name] = replace(rows[name], adversarial=tuple(each.prompt.text for each in kept))
    free = unless_taken(out, id, lambda _: False, options.force)
    write_atomic(free, PromptSet(str(free), rows).csv(concept_set).encode())
    return WrittenPrompts(free, found)


def show(result: "WrittenPrompts | AttackResults") -> None:
    if not isinstance(result, WrittenPrompts):
        result.show()
        return
    count = sum(map(len, result.found.values()))
    print_line(f"{result.path}: {count} adversarial prompts for {len(result.found)} concepts")


def as_json(result: "WrittenPrompts | AttackResults") -> Any:
    """Every instance of every model; or the prompt file, and how many prompts were found for each concept."""
    if not isinstance(result, WrittenPrompts):
        return result.as_json()
    return {"path": str(result.path), "found": {name: len(kept) for name, kept in result.found.items()}}


COMMAND = Command("attack", AttackOptions, run, show, as_json=as_json)
