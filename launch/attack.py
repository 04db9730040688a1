"""`efface attack`: adversarial prompts for a prompt set, found on the base's text encoder."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from efface.files import write_atomic


def attack(
    base_name: str,
    concepts: str | None,
    prompts: str | None,
    names: list[str],
    judge_name: str | None,
    per_concept: int,
    seed: int,
    out: Path,
    device: str,
) -> None:
    """Write the prompt set with the adversarial prompts of the named concepts (all unless named) replaced."""
    from efface.concepts.concept import load_concept_set
    from efface.concepts.prompts import PromptSet, load_prompt_set
    from efface.errors import UserError
    from efface.eval.adversarial_prompts import adversarial_prompts
    from efface.eval.judge import load_judge
    from efface.launch.device import resolve_device
    from efface.launch.erase import check_writable
    from efface.models.base import load_base, read_base
    from efface.models.recipe import load_recipe

    spec = read_base(base_name)
    for value, option in ((concepts or spec.concepts, "--concepts"), (prompts or spec.prompts, "--prompts")):
        if not value:
            raise UserError(f"base '{base_name}' names none of its own, so {option} must be given")
    concept_set = load_concept_set(concepts or str(spec.concepts))
    prompt_set = load_prompt_set(prompts or str(spec.prompts), concept_set)
    targets = [concept_set.find(name) for name in names] or list(concept_set.concepts)
    missing = [target.name for target in targets if target.name not in prompt_set.rows]
    if missing:
        raise UserError(f"{prompt_set.name}: has no row for {missing[0]}, add one with its direct prompts")
    check_writable(out)
    judge_name = judge_name or spec.judge
    torch_device = resolve_device(device)
    base = load_base(spec, torch_device)
    judge = load_judge(judge_name, torch_device) if judge_name else None
    console = Console(stderr=True, highlight=False)
    found = adversarial_prompts(
        base,
        concept_set,
        prompt_set,
        judge,
        load_recipe(spec.recipe),
        per_concept,
        seed,
        targets=targets,
        on_concept=lambda name, texts: console.print(f"{name}: {len(texts)} of {per_concept}"),
    )
    rows = dict(prompt_set.rows)
    for name, texts in found.items():
        rows[name] = replace(rows[name], adversarial=texts)
    write_atomic(out, PromptSet(str(out), rows).csv(concept_set).encode())
    print(f"{out}: {sum(map(len, found.values()))} adversarial prompts for {len(found)} concepts")
