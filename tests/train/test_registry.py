"""Finding methods, reading their configs and presets, and telling about them."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from efface.config_files import CONFIGS
from efface.errors import UserError
from efface.train.method import (
    METHODS,
    ClosedFormMethod,
    MethodConfig,
    get_method,
    method_names,
    parse_config,
    preset_names,
    register,
)
from efface.train.method_catalogue import catalogue

PRESETS = [(name, preset) for name in method_names() for preset in preset_names(name)]


class NothingConfig(MethodConfig):
    strength: float = Field(1.0, ge=0, description="how strongly nothing is done")


def register_nothing(name: str) -> None:
    @register(name)
    class Nothing(ClosedFormMethod):
        """Does nothing."""

        Config = NothingConfig
        group = "xattn"

        def solve(self, task: Any) -> dict[str, Any]:
            return {}


@pytest.fixture(autouse=True)
def _registry_as_before() -> Iterator[None]:
    yield
    for name in ("nothing", "something"):
        METHODS._items.pop(name, None)


def entry(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: EntryPoint(name, target, "efface.methods")}
    monkeypatch.setattr(METHODS, "_entry_points", lambda: found)


def test_the_built_in_methods_are_known_without_being_imported() -> None:
    assert {"ca", "esd", "fade", "uce"} <= set(method_names())


def test_an_unknown_method_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match=r"unknown method 'fadee': did you mean 'fade'\?"):
        get_method("fadee")


def test_a_method_of_another_package_is_found_through_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry("nothing", "somebody.methods:Nothing", monkeypatch)
    monkeypatch.setattr(EntryPoint, "load", lambda self: register_nothing("nothing"))
    assert "nothing" in method_names()
    assert get_method("nothing").name == "nothing"
    assert parse_config("nothing", {"strength": 2}).model_dump() == {"strength": 2}


def test_an_entry_point_that_fails_is_answered_in_a_sentence_and_breaks_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry("broken", "no.such.package", monkeypatch)
    with pytest.raises(UserError, match=r"method 'broken' cannot be loaded from no\.such\.package: No module"):
        get_method("broken")
    assert get_method("esd").name == "esd"


def test_an_entry_point_that_registers_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry("nothing", "somebody.methods", monkeypatch)
    monkeypatch.setattr(EntryPoint, "load", lambda self: register_nothing("something"))
    with pytest.raises(UserError, match="should register a method called 'nothing' and does not"):
        get_method("nothing")


def test_somebody_elses_method_of_a_built_in_name_does_not_replace_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    entry("uce", "somebody.methods", monkeypatch)
    monkeypatch.setattr(EntryPoint, "load", lambda self: pytest.fail("it was loaded"))
    monkeypatch.setattr(METHODS, "_items", {})
    monkeypatch.setattr("importlib.import_module", lambda module: METHODS.register("uce")(module))
    assert METHODS.get("uce") == "efface.train.methods.uce"


def test_a_preset_lies_over_the_defaults_and_the_config_over_the_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("steps: 7\neta: 2\n")
    config = parse_config("esd", {"eta": 3}, preset=str(tmp_path / "mine.yaml")).model_dump()
    assert (config["steps"], config["eta"], config["guidance_scale"]) == (7, 3, 3)


def test_an_unknown_preset_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match=r"unknown preset 'miniatur' of method 'esd': did you mean 'miniature'\?"):
        parse_config("esd", {}, preset="miniatur")


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_shipped_preset_fits_its_method_and_opens_with_a_comment(name: str, preset: str) -> None:
    parse_config(name, {}, preset)
    text = (CONFIGS / "methods" / name / f"{preset}.yaml").read_text()
    first = text.partition("\n")[0]
    assert first.startswith("#") and f"efface unlearn {name} " in first


def test_every_method_has_a_preset_for_the_miniature() -> None:
    assert {name for name, preset in PRESETS if preset == "miniature"} == set(method_names())


def test_the_catalogue_tells_every_setting_with_range_default_and_meaning() -> None:
    result = {method["name"]: method for method in catalogue()}
    assert set(result) == set(method_names())
    fields = {field["name"]: field for field in result["esd"]["fields"]}
    assert fields["eta"]["type"] == "number >= 0" and fields["eta"]["default"] == 1.0
    assert fields["variant"]["type"].startswith("'x' | 'u' | 'x-strict' | 'selfattn' | 'full' | 'notime'")
    assert fields["erase_from"]["type"] == "string | null"
    assert result["esd"]["policy"] == "either" and result["esd"]["strategies"] == ["continual", "multi", "single"]
    assert all(method["summary"] and all(f["description"] for f in method["fields"]) for method in result.values())
