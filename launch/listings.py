"""`efface methods | judges | concepts | prompts | bases`: what there is, for people or as JSON."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from efface.errors import UserError


def methods(name: str | None, as_json: bool) -> None:
    from efface.train.catalogue import catalogue

    found = catalogue()
    if name is not None:
        from efface.train.method import get_method

        get_method(name)
        found = [method for method in found if method["name"] == name]
    if as_json:
        _print_json(found)
    elif name is None:
        rows = [[m["name"], m["summary"], ", ".join(m["strategies"]), ", ".join(m["presets"])] for m in found]
        _print_table(["method", "", "strategies", "presets"], rows)
    else:
        fields = [[f["name"], str(f.get("default", "-")), f["description"]] for f in found[0]["fields"]]
        Console(highlight=False).print(f"[bold]{name}[/bold]  {found[0]['summary']}")
        _print_table(["field", "default", ""], fields)


def judges(as_json: bool) -> None:
    from efface.config_files import find_config, read_yaml
    from efface.eval.judge import judge_names

    found = [{"name": name, **read_yaml(find_config("judges", name))} for name in judge_names()]
    if as_json:
        _print_json(found)
    else:
        rows = [[judge["name"], str(judge.get("kind")), str(judge.get("source"))] for judge in found]
        _print_table(["judge", "kind", "model"], rows)


def bases(as_json: bool) -> None:
    from efface.config_files import list_configs
    from efface.models.base import read_base

    found = [read_base(name).model_dump() for name in list_configs("bases")]
    if as_json:
        _print_json(found)
    else:
        rows = [[b["name"], b["source"], str(b["image_size"]), b["concepts"] or "", b["judge"] or ""] for b in found]
        _print_table(["base", "source", "pixels", "concepts", "judge"], rows)


def concepts(name: str | None, as_json: bool) -> None:
    from efface.concepts.concept import concept_set_names, load_concept_set

    if name is None:
        sets = [load_concept_set(known) for known in concept_set_names()]
        if as_json:
            _print_json([{"name": s.name, "version": s.version, "concepts": len(s.concepts)} for s in sets])
        else:
            rows = [[s.name, str(s.version), str(len(s.concepts)), _kinds(s.kinds())] for s in sets]
            _print_table(["concept set", "version", "concepts", "kinds"], rows)
        return
    chosen = load_concept_set(name)
    if as_json:
        _print_json(chosen.model_dump(mode="json"))
    else:
        rows = [[c.name, c.kind, ", ".join(c.aliases), c.anchor or "", ", ".join(c.adjacent)] for c in chosen.concepts]
        _print_table(["concept", "kind", "aliases", "anchor", "adjacent"], rows)


def prompts(file: str, concept_set: str, target: str | None, as_json: bool) -> None:
    from efface.concepts.concept import load_concept_set
    from efface.concepts.prompts import AXES, load_prompt_set

    concepts = load_concept_set(concept_set) if concept_set else _concept_set_for(file)
    found = load_prompt_set(file, concepts)
    if target is not None:
        selected = [prompt for axis in AXES for prompt in found.axis(axis, concepts, concepts.find(target))]
        if as_json:
            _print_json([vars(prompt) for prompt in selected])
        else:
            _print_table(["axis", "asked for", "prompt"], [[p.axis, p.asked_concept, p.text] for p in selected])
        return
    counts = {name: found.counts(concepts, concepts.find(name)) for name in found.rows}
    if as_json:
        _print_json({"name": found.name, "sha256": found.sha256, "concept_set": concepts.name, "prompts": counts})
    else:
        _print_table(
            ["concept", *AXES],
            [[name, *(str(count[axis]) for axis in AXES)] for name, count in counts.items()],
        )
        print(f"{file}: {len(counts)} concepts of '{concepts.name}', no fault found")


def _concept_set_for(file: str) -> Any:
    """The concept set named like the prompt set, or the one shipped set that knows the file's names."""
    from efface.concepts.concept import concept_set_names, load_concept_set
    from efface.concepts.prompts import load_prompt_set

    if file in concept_set_names():
        return load_concept_set(file)
    errors = []
    for name in concept_set_names():
        concepts = load_concept_set(name)
        try:
            load_prompt_set(file, concepts)
        except UserError as error:
            errors.append(str(error))
        else:
            return concepts
    # The last complaint about anything but a name is the file's own fault; else the names fit no set.
    own = [error for error in errors if "unknown concept" not in error]
    raise UserError(own[0] if own else f"{errors[0]}; say --concepts, if its names belong to a set of your own")


def _kinds(kinds: dict[Any, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich.markup import escape

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(highlight=False).print(table)
