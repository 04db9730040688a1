"""A recipe: found by name, strict, and known by its content."""

from pathlib import Path

import pytest

from efface.config_files import list_configs
from efface.errors import UserError
from efface.models.recipe import Recipe, load_recipe


def test_the_reference_recipe_is_that_of_published_numbers() -> None:
    r = load_recipe("reference")
    assert (r.scheduler, r.steps, r.guidance_scale, r.height, r.width) == ("pndm", 50, 7.5, 512, 512)
    assert r.negative_prompt == ""


@pytest.mark.parametrize("name", list_configs("recipes"))
def test_every_shipped_recipe_loads(name: str) -> None:
    assert load_recipe(name).name == name


def test_the_id_stands_for_everything_but_the_name() -> None:
    one = load_recipe("reference")
    assert one.model_copy(update={"name": "other"}).id == one.id
    for changes in ({"steps": 49}, {"batch_size": 4}, {"negative_prompt": "x"}, {"dtype": "float16"}):
        assert Recipe(**{**one.model_dump(), **changes}).id != one.id


def test_a_misspelt_key_is_a_users_mistake(tmp_path: Path) -> None:
    text = "name: r\nscheduler: ddim\nsteps: 5\nguidance_scale: 3\nbatchsize: 2\nheight: 64\nwidth: 64\n"
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match="unknown key 'batchsize', did you mean 'batch_size'"):
        load_recipe(tmp_path / "r.yaml")
