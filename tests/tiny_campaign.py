"""A world small enough to run whole campaigns in: four concepts, their prompts, a judge, a recipe and a base.

The weights are random, so the verdicts mean nothing; what is tested is that they are there, once each.
Packages that need it import the fixtures into their conftest.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

CONCEPTS = ("cat", "dog", "bus", "tram")
HELD_OUT = ("dog", "tram")
NEAREST = {"cat": "dog", "dog": "cat", "bus": "tram", "tram": "bus"}

# With these limits a model is judged on 2 forget, 1 indirect, 1 adversarial, 1 adjacent and 3 retain prompts; the
# adjacent one is also one of the retained, so that there are 7 different ones.
LIMITS = {"adjacent": 1, "retain": 1}
PROMPTS = 7
IMAGES_PER_PROMPT = 2
TWO_IMAGES = {"calibration_images": 2}

UCE = {"method": "uce"}
ESD_CONFIG = {"steps": 2, "learning_rate": 1e-3, "rollout_steps": 3}
ESD = {"method": "esd", "config": ESD_CONFIG}


def write_yaml(path: Path, data: Any) -> str:
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(path)


def write_campaign_inputs(folder: Path, model: Path) -> None:
    """concepts.yaml, prompts.csv, recipe.yaml, judge.yaml with its weights, and base.yaml for the tiny `model`."""
    concepts = [
        {
            **{"name": name, "kind": "object", "phrase": f"a {name}", "anchor": "a thing", "adjacent": [NEAREST[name]]},
            "held_out": name in HELD_OUT,
        }
        for name in CONCEPTS
    ]
    write_yaml(folder / "concepts.yaml", {"name": "tiny", "version": 1, "concepts": concepts})
    rows = [f"{c},a {c},one {c},hint of {c[::-1]},x{c[1:]}" for c in CONCEPTS]
    header = "concept_name,direct_prompt_1,direct_prompt_2,indirect_prompt,adversarial_prompt"
    (folder / "prompts.csv").write_text("\n".join([header, *rows]) + "\n")
    recipe = {"name": "tiny", "scheduler": "ddim", "steps": 2, "guidance_scale": 2, "height": 16, "width": 16}
    write_yaml(folder / "recipe.yaml", {**recipe, "batch_size": 4})
    _write_judge(folder / "judge")
    write_yaml(folder / "judge.yaml", {"kind": "classifier", "source": str(folder / "judge"), **TWO_IMAGES})
    own = {key: str(folder / f"{key}.yaml") for key in ("recipe", "judge", "concepts")}
    base = {"name": "tiny", "source": str(model), "image_size": 16, "prompts": str(folder / "prompts.csv"), **own}
    write_yaml(folder / "base.yaml", base)


def campaign_dict(campaign_inputs: Path, **changes: Any) -> dict[str, Any]:
    """A campaign of two methods and one target, 14 images a model; `changes` replace its keys."""
    return {
        "name": "tiny",
        "base": str(campaign_inputs / "base.yaml"),
        "concepts": {"targets": ["cat"]},
        "methods": [UCE, ESD],
        "evaluation": {"images_per_prompt": IMAGES_PER_PROMPT, "prompts_per_concept": LIMITS, "shard_size": 5},
        **changes,
    }


@pytest.fixture(scope="session")
def campaign_inputs(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Path:
    """The folder of `write_campaign_inputs`. Not to be changed."""
    folder = tmp_path_factory.mktemp("campaign_inputs")
    write_campaign_inputs(folder, tiny_base_folder)
    return folder


@pytest.fixture
def campaign_file(campaign_inputs: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function from changed keys to a campaign's YAML file."""

    def write(**changes: Any) -> Path:
        return Path(write_yaml(tmp_path / "campaign.yaml", campaign_dict(campaign_inputs, **changes)))

    return write


def _write_judge(folder: Path) -> None:
    torch.manual_seed(1)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
        layer_type="basic",
        id2label=dict(enumerate(CONCEPTS)),
        label2id={name: i for i, name in enumerate(CONCEPTS)},
        problem_type="multi_label_classification",
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
