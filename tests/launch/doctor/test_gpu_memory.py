"""What a campaign's GPUs have to hold, against sums done by hand for Stable Diffusion v1.4."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.campaign.spec import Campaign, read_campaign
from efface.launch.doctor import gpu_memory
from efface.launch.doctor.gpu_memory import GpuMemoryEstimate, estimate_gpu_memory, judge_bytes, judging_bytes
from efface.models.base import read_base
from efface.models.recipe import Recipe, load_recipe
from efface.models.shapes import ModelShapes, model_shapes
from efface.train.cost.memory import estimate_memory
from efface.train.method import Method, get_method, parse_config

WEIGHTS = 859_520_964 + 83_653_863 + 123_060_480  # UNet, VAE and text encoder
UNET = 859_520_964
U = 813_495_680  # what ESD-u trains
WIDEST = 4 * 256 * 512 * 512  # bytes of the VAE's widest tensor of an image at 512 px


@pytest.fixture(scope="module")
def sd() -> ModelShapes:
    return model_shapes(read_base("sd-v1-4"))


def method(name: str, **config: Any) -> Method:
    return get_method(name)(parse_config(name, config))


ESD_U = method("esd", variant="u", gradient_accumulation_steps=2)


def reference(**changes: Any) -> Recipe:
    return load_recipe("reference").model_copy(update=changes)


def judge(folder: Path, kind: str, files: dict[str, int], **more: Any) -> str:
    """A judge whose files have so many numbers, kept in fp16."""
    folder.mkdir()
    for name, numbers in files.items():
        save_file({"a": torch.zeros(numbers - 10, dtype=torch.half), "b": torch.zeros(2, 5).half()}, folder / name)
    (folder / "config.json").write_text('{"model_type": "clip"}')
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({"kind": kind, "source": str(folder), **more}))
    return str(file)


def campaign(tmp_path: Path, judges: list[str], **changes: Any) -> Campaign:
    file = tmp_path / "campaign.yaml"
    requested: dict[str, Any] = {
        "name": "mine",
        "base": "sd-v1-4-random",
        "concepts": {"set": "genmu-2025", "targets": ["Van Gogh"]},
        "methods": [
            {"method": "uce"},
            {"method": "esd", "label": "u", "config": {"variant": "u", "gradient_accumulation_steps": 2}},
        ],
        "evaluation": {"prompts": "genmu-2025", "judges": judges, "prompts_per_concept": {"adversarial": 0}},
        "resources": {"gpus": 1},
    }
    file.write_text(yaml.safe_dump({**requested, **changes}))
    return read_campaign(file)


def estimate(campaign: Campaign) -> GpuMemoryEstimate:
    return estimate_gpu_memory(campaign, plan_campaign(campaign, fetch=False))


def test_judging_holds_the_base_the_weights_to_put_back_and_a_batch_being_decoded(sd: ModelShapes) -> None:
    """The VAE's widest tensors are there twice at least: what a layer reads, and what it writes."""
    one = judging_bytes(sd, reference(batch_size=1), []) - 4 * WEIGHTS
    eight = judging_bytes(sd, reference(batch_size=8), []) - 4 * WEIGHTS
    assert 2 * WIDEST <= one <= 5 * WIDEST
    assert eight == pytest.approx(8 * one, rel=0.01)
    edited = judging_bytes(sd, reference(batch_size=8), [method("uce"), ESD_U])
    assert edited == 4 * WEIGHTS + eight + 4 * U


def test_where_sampling_takes_more_than_decoding_it_counts_with_both_halves_of_guidance(sd: ModelShapes) -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        slight = AutoencoderKL(**blocks, block_out_channels=(4,) * 4, norm_num_groups=4)
    size = replace(sd, vae=slight)
    weights = judging_bytes(size, reference(batch_size=1, height=16, width=16, guidance_scale=1), [])
    plain, guided = (judging_bytes(size, reference(guidance_scale=scale), []) - weights for scale in (1, 7.5))
    assert guided == pytest.approx(2 * plain, rel=0.02)


def test_a_recipe_in_half_precision_has_the_unet_twice(sd: ModelShapes) -> None:
    """Sampling at batch 8 is less than decoding, so that only the copy makes the difference."""
    half, full = (judging_bytes(sd, reference(dtype=dtype), []) for dtype in ("bfloat16", "float32"))
    assert half - full == 2 * UNET


def test_a_judge_has_the_bytes_of_its_numbers_in_the_precision_it_is_loaded_in(tmp_path: Path) -> None:
    assert judge_bytes(judge(tmp_path / "clip", "clip", {"model.safetensors": 1000})) == 4 * 1000
    parts = {"model-00001-of-00002.safetensors": 1000, "model-00002-of-00002.safetensors": 500}
    assert judge_bytes(judge(tmp_path / "vlm", "vlm", parts)) == 2 * 1500
    assert judge_bytes(judge(tmp_path / "fp32", "vlm", parts, dtype="float32")) == 4 * 1500
    both = {**parts, "model.safetensors": 1500}
    assert judge_bytes(judge(tmp_path / "both", "vlm", both)) == 2 * 1500  # transformers takes the one file


def test_a_judge_that_is_not_here_has_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert judge_bytes("llava-1.5-7b") is None
    assert judge_bytes(judge(tmp_path / "empty", "clip", {})) is None
    found = estimate(campaign(tmp_path, ["llava-1.5-7b", "miniature"]))
    assert found.unknown == ("llava-1.5-7b",) and found.judges == judge_bytes("miniature")


def test_all_judges_stay_beside_judging_and_beside_training(tmp_path: Path, sd: ModelShapes) -> None:
    file = {"model.safetensors": 10**6}
    judges = [judge(tmp_path / f"{threshold:%}", "clip", file, threshold=threshold) for threshold in (0.4, 0.5)]
    with_one, with_two = (estimate(campaign(tmp_path, judges[:count])) for count in (1, 2))
    assert with_two.judges == 2 * 4 * 10**6
    assert with_two.judging - with_one.judging == 4 * 10**6
    assert with_two.training == {
        "uce": estimate_memory(method("uce"), sd).peak + with_two.judges,
        "u": estimate_memory(ESD_U, sd).peak + with_two.judges,
    }


def test_a_process_group_trains_without_judges_and_a_closed_form_takes_none(tmp_path: Path, sd: ModelShapes) -> None:
    judges = [judge(tmp_path / "one", "clip", {"model.safetensors": 10**6})]
    alone = estimate(campaign(tmp_path, judges)).training
    together = estimate(campaign(tmp_path, judges, resources={"gpus": 1, "processes": 2})).training
    assert together["uce"] == alone["uce"]
    assert together["u"] == estimate_memory(ESD_U, sd, processes=2).peak


class FakePeak:
    """Stands for the counter of a GPU, on the CPU."""

    device, device_name = "cpu", "a GPU"

    def reset(self) -> None:
        pass

    def peak(self) -> int:
        return 12_345


def tiny(campaign_file: Callable[..., Path], **changes: Any) -> tuple[Campaign, Plan]:
    parsed = read_campaign(campaign_file(**changes))
    return parsed, plan_campaign(parsed)


def test_where_there_is_a_gpu_a_step_is_measured_and_a_closed_form_estimated(
    campaign_file: Callable[..., Path],
) -> None:
    parsed, plan = tiny(campaign_file)
    found = estimate_gpu_memory(parsed, plan, FakePeak())
    assert found.measured == ("esd",) and found.training["esd"] == 12_345 + found.judges
    assert found.training["uce"] == estimate_gpu_memory(parsed, plan).training["uce"]


def test_a_job_of_several_gpus_is_estimated(campaign_file: Callable[..., Path]) -> None:
    config = {"steps": 2, "rollout_steps": 3, "gradient_accumulation_steps": 2}
    changes = {"methods": [{"method": "esd", "config": config}], "resources": {"gpus": 1, "processes": 2}}
    assert estimate_gpu_memory(*tiny(campaign_file, **changes), FakePeak()).measured == ()


def test_a_step_that_runs_out_of_memory_is_reported(
    campaign_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> int:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu_memory, "measured_peak", full)
    found = estimate_gpu_memory(*tiny(campaign_file), FakePeak())
    assert (found.measured, found.out_of_memory) == ((), ("esd",)) and found.training["esd"] > 0
