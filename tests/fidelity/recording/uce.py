"""UCE: the weights that `rohitgandikota/unified-concept-editing` solves for, by both scripts of today and the first.

Today's run from their command lines, unchanged but for the classifier of debiasing, whose answers come from a list. The
first script's `edit_model` is in fp64.
"""

import ast
import copy
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from tests.fidelity.recording.authors_checkout import Clone, Recorded, record, replaced, run_script

OLDER = "35e91e2"
CASES = {
    "newer/object": ["--edit_concepts", "golf ball; church", "--concept_type", "object"],
    "newer/art": [
        *("--edit_concepts", "Van Gogh; Picasso", "--guide_concepts", "art", "--concept_type", "art"),
        *("--preserve_concepts", "Monet; Rembrandt; Warhol"),
    ],
    "newer/unsafe": ["--edit_concepts", "violence; nudity; harm", "--concept_type", "object"],
    "newer/expanded": ["--edit_concepts", "Van Gogh", "--concept_type", "art", "--expand_prompts", "true"],
}
DEBIASING = [
    *("--edit_concepts", "doctor; nurse", "--debias_concepts", "male; female", "--desired_ratios", "0.5", "0.5"),
    *("--preserve_concepts", "Monet"),
]
MALE_OF_TEN = ((9, 2), (7, 5), (4, 5), (5, 5))
"""Of the images of doctor and nurse, in each round."""


def make(clone: Clone, model: Path, work: Path) -> Recorded:
    def solved(script: str, arguments: list[str], **given: Any) -> dict[str, Tensor]:
        code = clone.source(f"trainscripts/{script}")
        code = replaced(code, {"from transformers import pipeline": ""}) if given else code
        places = ["--model_id", str(model), "--device", "cpu", "--save_dir", str(work), "--exp_name", "x"]
        run_script(code, script, [*arguments, *places], **given)
        weights = safetensors.torch.load_file(work / "x.safetensors")
        return {f"unet.{name}": value.clone() for name, value in weights.items()}

    tensors = {}
    for case, arguments in CASES.items():
        tensors |= {f"{case}/{name}": value for name, value in solved("uce_sd_erase.py", arguments).items()}
    found = solved("uce_sd_debias.py", DEBIASING, pipeline=lambda **options: _answers_of_a_list())
    tensors |= {f"debias/{name}": value for name, value in found.items()}
    for technique in ("replace", "tensor"):
        tensors |= {f"older/{technique}/{n}": v for n, v in _first_script(clone, model, technique).items()}
    return tensors, {"commit": clone.commit(), "older_commit": clone.commit(OLDER)}


def _answers_of_a_list() -> Any:
    numbers = iter(np.ravel(MALE_OF_TEN).tolist())

    def classify(images: Any, candidate_labels: list[str]) -> list[list[dict[str, str]]]:
        male = next(numbers)
        return [[{"label": candidate_labels[0 if i < male else 1]}] for i in range(len(images))]

    return classify


def _first_script(clone: Clone, model: Path, technique: str) -> dict[str, Tensor]:
    code = clone.source("train-scripts/train_erase.py", OLDER)
    defined: dict[str, Any] = {"torch": torch, "copy": copy, "ast": ast}
    exec(code[code.index("def edit_model") : code.index("if __name__")], defined)
    torch.set_default_dtype(torch.float64)
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None).to(torch.float64)
    defined["edit_model"](
        pipe,
        ["Van Gogh", "Picasso"],
        ["art", " "],
        add=False,
        retain_text_=["", "Monet", "Rembrandt"],
        lamb=0.5,
        erase_scale=1,
        preserve_scale=max(0.1, 1 / 3),
        technique=technique,
    )
    torch.set_default_dtype(torch.float32)
    edited = {
        name: value for name, value in pipe.unet.named_parameters() if "attn2.to_k" in name or "attn2.to_v" in name
    }
    return {f"unet.{name}": value.detach().float().clone() for name, value in edited.items()}


if __name__ == "__main__":
    record(make)
