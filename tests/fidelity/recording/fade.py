"""FADE: three iterations of `IAB-IITJ/FADE`, fade/train_fade_cr.py, with its two files of the blue jay.

Changed from outside: the CPU, AdamW for its 8-bit form, `resolution: 256` and one noise a step, no xformers, no wandb.
The seed is the first whose three stops come early, at images of several sizes.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml

from tests.fidelity.recording.authors_checkout import Clone, Recorded, empty_module, record

STEPS, TRAJECTORIES = 3, 9
"""A step rolls out the concept, its three templated prompts and its five neighbours, with one stop."""
LATEST_STOP = 6


def make(clone: Clone, model: Path, work: Path) -> Recorded:
    clone.write("fade", work)
    sys.path.insert(0, str(work / "fade"))
    diffusers.AltDiffusionPipeline = None  # gone from diffusers, imported and not used
    diffusers.UNet2DConditionModel.enable_xformers_memory_efficient_attention = lambda *given, **options: None
    empty_module("wandb")
    empty_module("src.evaluation.eval_util")
    empty_module("src.evaluation", eval_util=sys.modules["src.evaluation.eval_util"])
    script = importlib.import_module("train_fade_cr")
    model_util, spm = (importlib.import_module(f"src.models.{name}") for name in ("model_util", "spm"))
    train_util = importlib.import_module("src.engine.train_util")
    config, prompt = (importlib.import_module(f"src.configs.{name}") for name in ("config", "prompt"))
    script.DEVICE_CUDA = torch.device("cpu")
    model_util.load_checkpoint_model.__defaults__ = (False, None, torch.float32, "cpu")
    seen = _Seen(script, spm, train_util, prompt)

    settings = yaml.safe_load((work / "fade/configs/blue_jay/config.yaml").read_text())
    settings["pretrained_model"]["name_or_path"] = str(model)
    settings["train"]["optimizer_type"] = "AdamW"
    settings["save"]["path"] = str(work / "out")
    prompts = yaml.safe_load((work / "fade/configs/blue_jay/prompt.yaml").read_text())
    for each in prompts:
        each.update(resolution=256, batch_size=1, sampling_batch_size=1)
    torch.manual_seed(1)
    script.train(config.RootConfig(**settings), [prompt.PromptSettings(**each) for each in prompts])

    tensors = {
        "losses": torch.tensor([loss["loss"] for loss in seen.losses]),
        "stops": torch.tensor(seen.stops[::TRAJECTORIES]),
        **{f"noise/{i}": noise for i, noise in enumerate(seen.noises)},
    }
    for layer in seen.network.unet_spm_layers:
        start = seen.starts[layer.spm_name]
        tensors[f"start/{layer.spm_name}"] = start
        tensors[f"up/{layer.spm_name}"] = layer.lora_up.weight.detach().clone()
        tensors[f"down/{layer.spm_name}"] = layer.lora_down.weight.detach().clone() - start
    return tensors, {"commit": clone.commit(), "terms": json.dumps(seen.losses)}


class _Seen:
    """Three iterations for however many, from a seed that is set when the first begins, noting what is drawn."""

    network: Any
    starts: dict[str, torch.Tensor]

    def __init__(self, script: Any, spm: Any, train_util: Any, prompt: Any) -> None:
        self.noises: list[torch.Tensor] = []
        self.stops: list[int] = []
        self.losses: list[dict[str, float]] = []
        seen, seed, begun = self, _early_seed(), []

        class Network(spm.SPMNetwork):
            def __init__(self, *given: Any, **options: Any) -> None:
                super().__init__(*given, **options)
                seen.network = self
                seen.starts = {each.spm_name: each.lora_down.weight.detach().clone() for each in self.unet_spm_layers}

        class Progress:
            def __init__(self, steps: Any) -> None:
                pass

            def __iter__(self) -> Iterator[int]:
                return iter(range(STEPS))

            def set_description(self, text: str) -> None:
                pass

        def flush() -> None:
            if not begun:
                begun.append(torch.manual_seed(seed))

        first_latents, roll_out, loss = (
            train_util.get_initial_latents,
            train_util.diffusion,
            prompt.PromptEmbedsPair.loss,
        )

        def get_initial_latents(*given: Any, **options: Any) -> torch.Tensor:
            self.noises.append(first_latents(*given, **options).clone())
            return self.noises[-1].clone()

        def diffusion(*given: Any, **options: Any) -> Any:
            self.stops.append(options["total_timesteps"])
            return roll_out(*given, **options)

        def noted_loss(pair: Any, **options: Any) -> Any:
            terms = loss(pair, **options)
            self.losses.append({name: float(value) for name, value in terms.items()})
            return terms

        script.SPMNetwork, script.tqdm, script.flush = Network, Progress, flush
        train_util.get_initial_latents, train_util.diffusion = get_initial_latents, diffusion
        prompt.PromptEmbedsPair.loss = noted_loss


def _early_seed() -> int:
    """The script draws a prompt, a stop, a height, a width and a noise a step."""
    for seed in range(10_000):
        torch.manual_seed(seed)
        drawn = []
        for _ in range(STEPS):
            torch.randint(0, 1, (1,))
            stop = int(torch.randint(1, 30, (1,)))
            height, width = (int(torch.randint(2, 4, (1,))) * 64 for _ in range(2))
            torch.randn(1, 4, height // 8, width // 8)
            drawn.append((stop, (height, width)))
        if max(stop for stop, _ in drawn) <= LATEST_STOP and len({size for _, size in drawn}) > 1:
            return seed
    raise ValueError("no such seed")


if __name__ == "__main__":
    record(make)
