"""What a judge's YAML may say: one strict model for each kind, read without torch, for a plan as for the loaders."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from efface.config_files import StrictModel, find_config, list_configs, parse, read_yaml
from efface.errors import UserError, did_you_mean

Source = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class ClassifierSpec(StrictModel):
    """A YAML file of `configs/judges/` with `kind: classifier`."""

    kind: Literal["classifier"]
    source: Source = Field(
        description="a transformers image classification model: package:FOLDER, a folder, or a hub id"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="probability from which a concept counts as present")
    labels: dict[str, str] = Field({}, description="label of the model -> concept, where the two names differ")
    batch_size: int = Field(32, ge=1, description="images per forward pass")


class ClipSpec(StrictModel):
    """A YAML file of `configs/judges/` with `kind: clip`."""

    kind: Literal["clip"]
    source: Source = Field(description="a CLIP model: package:FOLDER, a folder, or a hub id")
    threshold: float | None = Field(None, gt=0, lt=1, description="for all concepts, instead of a calibration")
    present: str = Field("an image of {concept}", description="the text for an image that shows {concept}")
    absent: str = Field("an image without {concept}", description="the text for one that does not")
    batch_size: int = Field(32, ge=1, description="images per forward pass")

    @field_validator("present", "absent")
    @classmethod
    def _asks_for_the_concept(cls, text: str) -> str:
        if text.count("{concept}") != 1 or _braces(text.replace("{concept}", "")):
            raise ValueError("the text should hold {concept} once and no other braces")
        return text


class VlmSpec(StrictModel):
    """A YAML file of `configs/judges/` with `kind: vlm`."""

    kind: Literal["vlm"]
    source: Source = Field(
        description="an image-text-to-text model of transformers: package:FOLDER, a folder, or a hub id"
    )
    question: str = Field(
        "Is there {question} in this image? Answer yes or no.",
        description="{question} is the concept's own question",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float16", description="of the weights")
    answer_tokens: int = Field(5, ge=1, le=64, description="longest answer that is read")
    batch_size: int = Field(8, ge=1, description="images per forward pass")

    @field_validator("question")
    @classmethod
    def _asks_for_the_concept(cls, text: str) -> str:
        if text.count("{question}") != 1 or _braces(text.replace("{question}", "")):
            raise ValueError("the question should hold {question} once and no other braces")
        return text


JudgeSpec = ClassifierSpec | ClipSpec | VlmSpec

KINDS: dict[str, type[JudgeSpec]] = {"classifier": ClassifierSpec, "clip": ClipSpec, "vlm": VlmSpec}


def judge_names() -> list[str]:
    """The judges shipped in `configs/judges/`."""
    return list_configs("judges")


def read_judge(name_or_path: str | Path) -> JudgeSpec:
    """What the YAML of a judge says, found by its path or a shipped name.

    Raises UserError for an unknown judge, a kind that there is not, and whatever else is wrong in the file.
    """
    path = find_config("judges", name_or_path)
    data = read_yaml(path)
    if "kind" not in data:
        raise UserError(f"{path}: key 'kind' is missing, should be one of {', '.join(KINDS)}")
    kind = str(data["kind"])
    if kind not in KINDS:
        raise UserError(f"{path}: kind: '{kind}' is no kind of judge, {did_you_mean(kind, KINDS)}")
    return parse(KINDS[kind], data, str(path))


def judge_name(name_or_path: str | Path) -> str:
    """What a judge is called in tables: the name of its YAML file, without the suffix."""
    return find_config("judges", name_or_path).stem


def _braces(text: str) -> bool:
    return "{" in text or "}" in text
