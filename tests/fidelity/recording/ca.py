"""CA: three steps of `nupurkmr9/concept-ablation`, diffusers/train.py, from its command line; its views and its masks.

A style in batches of 8, an object in batches of 2, and the same with the prior; one process, 64 px, images of noise and
four captions in place of what the script would generate. torchvision, of which it uses little, is replaced.
"""

import importlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from tests.fidelity.recording.authors_checkout import Clone, Recorded, empty_module, record, replaced

CAPTIONS = {
    "style": ("a harbour at dawn", "two horses", "an old woman", "a wheat field"),
    "object": ("a robot in a garden", "the robot, smiling", "one robot", "a photo of a robot"),
}
IMAGES, SIZE, STEPS = 8, 64, 3
PLACES = ((32, 0, 0), (17, 9, 3), (41, 2, 7))
"""Scale, top and left: whole, shrunk, enlarged; of 32 px."""


def make(clone: Clone, model: Path, work: Path) -> Recorded:
    old_name = {"import CLIPFeatureExtractor": "import CLIPImageProcessor as CLIPFeatureExtractor"}
    for name in ("train.py", "utils.py", "model_pipeline.py"):
        code = clone.source(f"diffusers/{name}")
        (work / name).write_text(replaced(code, {k: v for k, v in old_name.items() if k in code}))
    _replace_torchvision()
    sys.path.insert(0, str(work))
    script, utils = importlib.import_module("train"), importlib.import_module("utils")
    drawn = np.random.default_rng(0)
    files = [work / f"{number}.png" for number in range(IMAGES)]
    for file in files:
        Image.fromarray(drawn.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(file)
    (work / "images.txt").write_text("\n".join(map(str, files)))
    for kind, lines in CAPTIONS.items():
        (work / f"{kind}.txt").write_text("\n".join(lines[number % 4] for number in range(IMAGES)))

    tensors, facts = {}, {"commit": clone.commit()}
    prior = ["--with_prior_preservation", "--class_data_dir", str(work / "images.txt")]
    for case, kind, target, batch, more in (
        ("style", "style", "van gogh", 8, ["--noaug"]),
        ("object", "object", "robot+r2d2", 2, []),
        ("prior", "object", "robot+r2d2", 2, [*prior, "--class_prompt", str(work / "object.txt")]),
    ):
        found, captions = _three_steps(script, model, work, kind, target, batch, more)
        tensors |= {f"{case}/{name}": value for name, value in found.items()}
        facts[f"{case}/captions"] = json.dumps(captions)
    return tensors | _views(utils), facts


def _three_steps(
    script: Any, model: Path, work: Path, kind: str, target: str, batch: int, more: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    noised: list[tuple[Tensor, ...]] = []
    batches: list[dict[str, Tensor]] = []
    losses: list[float] = []
    add_noise, collate = diffusers.DDPMScheduler.add_noise, script.collate_fn

    def noted_noise(scheduler: Any, *given: Tensor) -> Tensor:
        noised.append(tuple(each.clone() for each in given))
        return add_noise(scheduler, *given)

    def noted_batch(examples: Any, with_prior: bool) -> Any:
        batches.append(collate(examples, with_prior))
        return batches[-1]

    diffusers.DDPMScheduler.add_noise, script.collate_fn = noted_noise, noted_batch
    script.Accelerator.log = lambda accelerator, logs, step=None: losses.append(logs["loss"])
    arguments = [
        *("--pretrained_model_name_or_path", str(model), "--output_dir", str(work / "out")),
        *("--concept_type", kind, "--caption_target", target, "--parameter_group", "cross-attn"),
        *("--instance_data_dir", str(work / "images.txt"), "--instance_prompt", str(work / f"{kind}.txt")),
        *("--resolution", str(SIZE), "--train_batch_size", str(batch), "--learning_rate", "2e-6", "--scale_lr"),
        *("--max_train_steps", str(STEPS), "--hflip", "--dataloader_num_workers", "0"),
    ]
    script.main(script.parse_args([*arguments, *more]))
    diffusers.DDPMScheduler.add_noise, script.collate_fn = add_noise, collate

    tokenizer = transformers.AutoTokenizer.from_pretrained(model / "tokenizer")
    before = dict(diffusers.UNet2DConditionModel.from_pretrained(model / "unet").named_parameters())
    trained = torch.load(work / "out" / "delta.bin")["unet"]
    found = {f"change/unet.{name}": (value - before[name].detach()).clone() for name, value in trained.items()}
    found["losses"] = torch.tensor(losses)
    captions: dict[str, list[Any]] = {"anchors": [], "targets": [], "priors": []}
    for step in range(STEPS):
        found[f"latents/{step}"], found[f"noise/{step}"], found[f"timesteps/{step}"] = noised[step]
        found[f"regions/{step}"] = batches[step]["mask"][:batch].to(torch.uint8)
        texts = tokenizer.batch_decode(batches[step]["input_ids"], skip_special_tokens=True)
        captions["anchors"].append(tokenizer.batch_decode(batches[step]["input_anchor_ids"], skip_special_tokens=True))
        captions["targets"].append(texts[:batch])
        captions["priors"].append(texts[batch:])
    return found, captions


def _views(utils: Any) -> dict[str, Tensor]:
    """What its dataset makes of a pattern at three places, and its masks at 24."""
    found: dict[str, Tensor] = {}
    dataset = utils.CustomDiffusionDataset.__new__(utils.CustomDiffusionDataset)
    dataset.size = 32
    rows, columns = np.indices((32, 32))
    pattern = Image.fromarray(((rows * 5 + columns * 2)[..., None] + np.array([0, 17, 40])).astype(np.uint8))
    for number, (scale, top, left) in enumerate(PLACES):
        with _drawn(top, left):
            pixels, _ = dataset.preprocess(pattern, scale, Image.LANCZOS)
        found[f"view/{number}/pixels"] = torch.from_numpy(pixels.copy())
        found[f"view/{number}/place"] = torch.tensor([scale, top, left])
    dataset.size = SIZE
    blank, draw = Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)), random.Random(0)
    places, masks = [], []
    for _ in range(24):
        scale = draw.choice([SIZE, draw.randint(21, SIZE), draw.randint(76, 88)])
        top, left = (draw.randint(0, abs(scale - SIZE)) for _ in range(2))
        with _drawn(top, left):
            masks.append(torch.from_numpy(dataset.preprocess(blank, scale, Image.LANCZOS)[1]).to(torch.uint8))
        places.append([scale, top, left])
    return {**found, "masks": torch.stack(masks), "places": torch.tensor(places)}


@contextmanager
def _drawn(*numbers: int) -> Iterator[None]:
    """`np.random.randint` gives these."""
    really, left = np.random.randint, iter(numbers)
    np.random.randint = lambda *given: next(left)
    yield
    np.random.randint = really


def _replace_torchvision() -> None:
    def flip(share: float) -> Callable[[Image.Image], Image.Image]:
        turned = Image.FLIP_LEFT_RIGHT
        return lambda image: image.transpose(turned) if np.random.uniform() < share else image

    def compose(steps: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
        def run(image: Any) -> Any:
            for step in steps:
                image = step(image)
            return image

        return run

    def as_it_is(*given: Any, **options: Any) -> Callable[[Any], Any]:
        return lambda image: image

    transforms = SimpleNamespace(
        RandomHorizontalFlip=flip,
        Compose=compose,
        InterpolationMode=SimpleNamespace(LANCZOS=Image.LANCZOS),
        Resize=as_it_is,
        CenterCrop=as_it_is,
        RandomCrop=as_it_is,
        ToTensor=lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255,
        Normalize=lambda *given, **options: lambda pixels: pixels * 2 - 1,
    )
    empty_module("torchvision.transforms", **vars(transforms))
    empty_module("torchvision", transforms=sys.modules["torchvision.transforms"])
    empty_module("openai")
    transformers.CLIPFeatureExtractor = transformers.CLIPImageProcessor


if __name__ == "__main__":
    record(make)
