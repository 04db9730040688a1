"""Strict files: YAML is read once, on entry, into frozen pydantic models; a fault becomes one sentence for people."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from efface.errors import UserError, did_you_mean

CONFIGS = Path(__file__).parent / "configs"


class StrictModel(BaseModel):
    """A frozen model that refuses unknown fields, numbers out of range, NaN and infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The mapping in a YAML file, `${…}` resolved and `key=value` overrides laid over it.

    Raises UserError where the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        with path.open(encoding="utf-8") as file, _defer_interrupt():
            tree: Any = OmegaConf.load(file)
            if overrides:
                tree = _apply_overrides(tree, overrides)
            data = OmegaConf.to_container(tree, resolve=True)
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is None:  # OmegaConf's word for a lone number or text
            raise UserError(f"{path}: holds no mapping of keys to values") from None
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    except AssertionError:  # OmegaConf's word for a text that says a number, or nothing
        raise UserError(f"{path}: holds no mapping of keys to values") from None
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML ({_message(error)})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}, should be a mapping of keys to values")
    return {str(key): value for key, value in data.items()}


@contextmanager
def _defer_interrupt() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, a short one: within it OmegaConf would take it for a fault of the file."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if received:
        signal.raise_signal(signal.SIGINT)


def _apply_overrides(tree: Any, overrides: list[str]) -> Any:
    try:
        return OmegaConf.merge(tree, OmegaConf.from_dotlist(overrides))
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        message = f"--set {_one_line(' '.join(overrides))}: cannot be laid over the file ({_message(error)})"
        raise UserError(f"{message}, should be KEY=VALUE, and a list given whole: KEY=[…]") from None


def parse(model: type[Model], data: Any, where: str) -> Model:
    """`data` as a `model`; the first fault raises UserError with the place, the key and what would be right."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_one_line(_error_message(model, error))}") from None


def read_config(model: type[Model], path: Path, overrides: list[str] | None = None) -> Model:
    """A YAML file as a `model`: `read_yaml`, then `parse`."""
    return parse(model, read_yaml(path, overrides), str(path))


def list_configs(folder: str) -> list[str]:
    """Names of the YAML files shipped in `configs/<folder>/`, sorted."""
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


def find_config(folder: str, name: str | Path) -> Path:
    """The YAML file meant by `name`: a path that exists, or a name shipped in `configs/<folder>/`."""
    try:
        for path in (Path(name), CONFIGS / folder / f"{name}.yaml"):
            if path.is_file():
                return path
    except OSError:
        pass  # a name too long for the file system is no file, and no shipped name either
    what = {"bases": "base", "searches": "search"}.get(folder, folder.removesuffix("s"))
    raise UserError(f"unknown {what} '{name}': {did_you_mean(str(name), list_configs(folder))}")


def _message(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else _one_line(str(error))


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())


def _error_message(model: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors()[0]
    *before, last = problem["loc"] or ("",)
    loc = [part for part in before if not _is_type(part)]
    if problem["type"] in ("extra_forbidden", "missing") or not _is_type(last):
        loc.append(last)
    key = ".".join(map(str, loc))
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}', {did_you_mean(str(loc[-1]), _fields_at(model, loc[:-1]))}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return (
        f"{key}: {message}, not {_short_repr(problem['input'])}"
        if key and problem["type"] != "value_error"
        else (f"{key}: {message}" if key else message)
    )


def _short_repr(value: Any) -> str:
    """A value as it would be written in Python; of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _is_type(part: int | str) -> bool:
    """Whether a part of a place is no key but one of several types that a value may have: `tuple[str, ...]`."""
    return isinstance(part, str) and "[" in part


def _fields_at(model: type[BaseModel], loc: list[Any]) -> list[str]:
    """Field names of the model nested in `model` at `loc` (list positions are passed over)."""
    for part in loc:
        if not isinstance(part, str) or part not in model.model_fields:
            continue
        nested = _models_in(model.model_fields[part].annotation)
        if nested:
            model = nested[0]
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in getattr(annotation, "__args__", ()) for found in _models_in(inner)]
