"""The page of all commands, from the command line itself."""

from collections.abc import Iterator
from typing import Any

import typer

from efface.launch.cli import PANELS, app


def commands_page() -> str:
    """Markdown: every command by its panel, with its arguments, options and defaults."""
    group: Any = typer.main.get_command(app)
    lines = ["# Commands", "", "Made from the command line itself; `efface COMMAND --help` says the same.", ""]
    for panel, names in PANELS.items():
        lines += [f"## {panel}", ""]
        for name in names:
            lines += _command(f"efface {name}", group.commands[name])
    return "\n".join(lines)


def _command(name: str, command: Any) -> Iterator[str]:
    """Of a command, or of a group and those in it."""
    yield from (f"### {name}", "", _text(command.help), "")
    if hasattr(command, "list_commands"):
        context = typer.Context(command)
        for inner in command.list_commands(context):
            yield from _command(f"{name} {inner}", command.get_command(context, inner))
        return
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    usage = " ".join(f"[{_metavar(a)}]" if not a.required else _metavar(a) for a in arguments)
    yield from (f"    {name} {usage} [OPTIONS]".replace("  [", " ["), "")
    yield from ("| | default | |", "|---|---|---|")
    for parameter in (*arguments, *(p for p in command.params if p not in arguments)):
        if "--help" not in parameter.opts:
            yield f"| {_named(parameter)} | {_default(parameter)} | {_text(parameter.help)} |"
    yield ""


def _metavar(argument: Any) -> str:
    return f"{(argument.metavar or argument.name).upper()}{'…' if argument.nargs == -1 else ''}"


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_metavar(parameter)}`"
    return ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if value in (None, "", [], ()) or isinstance(value, bool) or callable(value):
        return ""
    return f"`{', '.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


def _text(help: str | None) -> str:
    """As it may stand in a cell of a table."""
    return " ".join((help or "").replace("|", "\\|").replace("[bold]", "").replace("[/bold]", "").split())
