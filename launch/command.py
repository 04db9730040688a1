"""What a command of `efface` is: typed options, an action on them, and how its result is shown.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        \"\"\"Recompute every score from an image table alone.\"\"\"                      # the command's help

        table: Annotated[str, typer.Argument(help="An image table, …")]
        method: Annotated[str | None, typer.Option(help="Score only this method.")] = None

    def run(options: Options) -> Scores: ...     # does it and prints nothing; Python calls this as well
    def show(scores: Scores) -> None: ...        # prints the result for people

    COMMAND = Command("score", Options, run, show, as_json=Scores.as_json)

Each file of `launch/commands/` holds one; `launch/cli.py` puts them together. A command imports nothing heavy before it
runs.
"""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

import typer

Options = TypeVar("Options")
Result = TypeVar("Result")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@dataclass(frozen=True)
class Command(Generic[Options, Result]):
    """One verb of the command line.

    options: a dataclass whose fields are annotated with `typer.Argument` or `typer.Option`; its docstring is the help.
    as_json: the result as JSON values; a command that has it takes `--json`. exit_code: 0 unless the result says that
    something failed.
    """

    name: str
    options: Callable[..., Options]
    run: Callable[[Options], Result]
    show: Callable[[Result], None]
    as_json: Callable[[Result], Any] | None = None
    exit_code: Callable[[Result], int] = lambda _: 0

    @property
    def help(self) -> str:
        return inspect.getdoc(self.options) or ""

    def function(self) -> Callable[..., None]:
        """The command as typer takes it: a function with one parameter for each field of the options."""

        def call(**values: Any) -> None:
            wants_json = values.pop("json", False)
            result = self.run(self.options(**values))
            if wants_json and self.as_json:
                from efface.text import json_text

                print(json_text(self.as_json(result)))
            else:
                self.show(result)
            code = self.exit_code(result)
            if code:
                raise typer.Exit(code)

        parameters = _parameters(self.options)
        if self.as_json:
            parameters.append(
                inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonFlag)
            )
        call.__name__ = self.name
        call.__doc__ = self.help
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call


def _parameters(options: Any) -> list[inspect.Parameter]:
    types = get_type_hints(options, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=types[field.name]
        )
        for field in dataclasses.fields(options)
    ]


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return inspect.Parameter.empty if field.default_factory is dataclasses.MISSING else field.default_factory()
