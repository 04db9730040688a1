"""Strict files: YAML is read once, on entry, into frozen pydantic models; an error becomes one sentence for people.

A file may come from anybody, so it is data: nothing in it is looked up. `${…}` of OmegaConf, which could read the
user's environment (`${oc.env:NAME}`), is refused; `\\${` stands for the text `${`. Size, nesting and what aliases
expand to are limited before anything is built.
"""

import io
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from efface.errors import UserError, did_you_mean
from efface.files import is_remote, local_path
from efface.plain_files import open_plain

CONFIGS = Path(__file__).parent / "configs"

MAX_CHARACTERS = 4 * 2**20
MAX_NODES = 200_000
"""Values in a file, aliases expanded."""
MAX_DEPTH = 32
"""Mappings and lists within one another."""
INTERPOLATION = re.compile(r"(\\*)\$\{")
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class StrictModel(BaseModel):
    """A frozen model that refuses unknown fields, numbers out of range, NaN and infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


LocalPath = Annotated[Path, AfterValidator(local_path)]
"""A path on this machine, in which `~` is the home folder."""

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The mapping in a YAML file, with `key=value` overrides applied to it.

    Raises UserError where the file cannot be read, is not YAML or too large, is not a mapping, or holds `${…}`.
    """
    try:
        text = _read_text(path)
        with _defer_interrupt():
            _check_limits(text)
            tree: Any = OmegaConf.load(io.StringIO(text))
            data = OmegaConf.to_container(tree, resolve=False)
            if overrides:
                _plain_keys(path, data)  # before OmegaConf, which merges into what `${…}` stands for, looks it up
                data = OmegaConf.to_container(_apply_overrides(tree, overrides), resolve=False)
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is None:  # OmegaConf's error for a lone number or text
            raise UserError(f"{path}: holds no mapping of keys to values") from None
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    except AssertionError:  # OmegaConf's error for a text that is a number, or nothing
        raise UserError(f"{path}: holds no mapping of keys to values") from None
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML ({_message(error)})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}, should be a mapping of keys to values")
    return _plain_keys(path, data)


def to_yaml(data: dict[str, Any]) -> str:
    """JSON values as YAML that `read_yaml` reads back as they are, `${` and backslashes before it included."""
    return OmegaConf.to_yaml(OmegaConf.create(_escape(data)))


def _read_text(path: Path) -> str:
    """Raises ValueError where the file is larger than any config."""
    if is_remote(path):
        text = path.read_text(encoding="utf-8")
    else:
        with open_plain(path) as data, TextIOWrapper(data, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"is longer than {MAX_CHARACTERS:,} characters")
    return text


def _check_limits(text: str) -> None:
    """Raises ValueError where the YAML nests too deeply or comes to too many values. Builds none of them."""
    sizes: dict[str, int] = {}  # anchor -> values below it
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=YamlLoader):
        anchor, size = open_nodes[-1]
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_nodes) > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
            open_nodes.append((event.anchor, 1))
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            open_nodes.pop()
            if anchor:
                sizes[anchor] = size
            added = size
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"alias *{event.anchor} is unknown, or stands within what it names")
            added = sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            added = 1
            if event.anchor:
                sizes[event.anchor] = 1
        else:
            continue
        anchor, size = open_nodes[-1]
        if size + added > MAX_NODES:
            raise ValueError(f"holds more than {MAX_NODES:,} values, aliases expanded")
        open_nodes[-1] = (anchor, size + added)


def _plain_keys(path: Path, data: Any) -> dict[str, Any]:
    """What `_plain` makes of a file's values. Raises UserError."""
    try:
        return {str(key): _plain(value, str(key)) for key, value in data.items()} if isinstance(data, dict) else {}
    except ValueError as error:
        raise UserError(f"{path}: {_one_line(str(error))}") from None


def _plain(value: Any, key: str) -> Any:
    """A value with `\\${` in its texts read as `${`. Raises ValueError where one holds `${…}`, or is no text at all."""
    if isinstance(value, dict):
        return {name: _plain(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, f"{key}.{index}") for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{key}: holds half of a surrogate pair, should be text")

    def unescape(match: "re.Match[str]") -> str:
        backslashes = len(match[1])
        if backslashes % 2 == 0:
            raise ValueError(f"{key}: ${{…}} is not looked up in files, write the value, or \\${{ for the text ${{")
        return "\\" * (backslashes // 2) + "${"

    return INTERPOLATION.sub(unescape, value)


def _escape(value: Any) -> Any:
    """The reverse of `_plain`."""
    if isinstance(value, str):
        return INTERPOLATION.sub(lambda match: "\\" * (2 * len(match[1]) + 1) + "${", value)
    if isinstance(value, dict):
        return {key: _escape(inner) for key, inner in value.items()}
    return [_escape(inner) for inner in value] if isinstance(value, list | tuple) else value


@contextmanager
def _defer_interrupt() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, a short one: in it OmegaConf would take it for an error of the file."""
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
        message = f"--set {_one_line(' '.join(overrides))}: cannot be applied to the file ({_message(error)})"
        raise UserError(f"{message}, should be KEY=VALUE, and a list given whole: KEY=[…]") from None


def parse(model: type[Model], data: Any, where: str) -> Model:
    """`data` as a `model`; the first error raises UserError with the file, the key and what would be right."""
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
        for path in (local_path(name), CONFIGS / folder / f"{name}.yaml"):
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
        f"{key}: {message}, not {shown(problem['input'])}"
        if key and problem["type"] != "value_error"
        else (f"{key}: {message}" if key else message)
    )


def shown(value: Any) -> str:
    """A value as it would be written in Python; of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _is_type(part: int | str) -> bool:
    """Whether a part of a location is no key but one of several types that a value may have: `tuple[str, ...]`."""
    return isinstance(part, str) and "[" in part


def _fields_at(model: type[BaseModel], loc: list[Any]) -> list[str]:
    """Field names of the model nested in `model` at `loc` (list positions are skipped)."""
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
