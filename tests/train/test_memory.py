"""What a job needs of a GPU, held against sums done by hand, and against DeepSpeed and torch's optimisers at work."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from efface.config_files import CONFIGS, read_yaml
from efface.models.activations import _Counter
from efface.models.base import read_base
from efface.train.cost.memory import BUCKET, Memory, fits, memory, memory_options
from efface.train.cost.passes import ModelShapes, model_shapes, trained_tensors
from efface.train.method import Method, Student, get_method, parse_config
from efface.train.trainer.deepspeed_engine import ZeroEngine, deepspeed_config
from efface.train.trainer.engine import OPTIMIZERS, isolated_accelerate_state
from efface.train.trainer.options import TrainingOptions

UNET, VAE, TEXT_ENCODER = 859_520_964, 83_653_863, 123_060_480
U = 813_495_680  # what ESD-u trains
X = 43_962_560  # the cross-attention
SMALL_BUCKET = 400_000


@pytest.fixture(scope="session")
def sd() -> ModelShapes:
    return model_shapes(read_base("sd-v1-4"))


def method(name: str, **config: Any) -> Method:
    return get_method(name)(parse_config(name, config))


@pytest.fixture(scope="module")
def esd_u() -> Method:
    return method("esd", variant="u")


def test_on_one_gpu_there_are_weights_gradients_and_adams_two_moments(sd: ModelShapes, esd_u: Method) -> None:
    found = memory(esd_u, sd)
    assert found.base == 4 * (UNET + VAE + TEXT_ENCODER)
    assert (found.student, found.gradients, found.optimizer, found.host) == (4 * UNET, 4 * U, 8 * U, 0)
    assert found.update == (4 + 4) * U  # the gradients, and the root of the second moments
    # One roll-out step of two rows, one training row; the step comes when its activations are gone.
    assert found.rollout < found.training < 4 * U
    assert found.peak == found.base + 4 * UNET + 16 * U


def test_ddp_keeps_the_gradients_a_second_time_in_its_buckets(sd: ModelShapes, esd_u: Method) -> None:
    assert memory(esd_u, sd, processes=8).peak == memory(esd_u, sd).peak + 4 * U


@pytest.fixture(scope="module")
def small() -> ModelShapes:
    """Three million weights: enough to be, as in Stable Diffusion, the most of what a step takes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(64, 128),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=16,
        )
    return replace(model_shapes(read_base("sd-v1-4")), unet=unet, image_size=64)


class Alive(_Counter):
    """The bytes alive: of shapes without numbers, which DeepSpeed keeps, none."""

    def _record(self, storage: Any) -> None:
        if storage.device.type != "meta":
            super()._record(storage)

    def most(self) -> int:
        """The most since this was last asked."""
        found, self.peak = self.peak, self.now
        return found


@pytest.fixture
def deepspeed_at_work(tmp_path: Path, small: ModelShapes, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function (stage, offload, processes, batches) -> the method, and bytes at most: set up, in passes, in steps.

    Real DeepSpeed on the CPU, so that what it puts on a GPU and what in the host's memory come together. Of several
    processes only the first is there; torch's "fake" group answers for the others, in the right shapes.
    """

    def watch(stage: int, offload: str, processes: int, batches: int) -> tuple[Method, int, int, int]:
        zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": SMALL_BUCKET, "overlap_comm": False}
        if stage == 3:
            zero |= {"stage3_prefetch_bucket_size": SMALL_BUCKET, "stage3_param_persistence_threshold": 10}
        if offload != "none":
            zero["offload_optimizer"] = {"device": "cpu"}
        if offload == "all":
            zero["offload_param"] = {"device": "cpu"}
        file = tmp_path / "zero.yaml"
        file.write_text(yaml.safe_dump({"zero_optimization": zero}))
        built: Any = method("esd", variant="u", gradient_accumulation_steps=processes * batches)
        if processes > 1:
            monkeypatch.setenv("LOCAL_RANK", "0")
            distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
        alive = Alive(())
        with isolated_accelerate_state(), alive:
            unet = UNet2DConditionModel.from_config(small.unet.config).requires_grad_(False)
            _, chosen = trained_tensors(built, small)
            trained = {name: value.requires_grad_(True) for name, value in unet.named_parameters() if name in chosen}
            alone: Any = SimpleNamespace(device=torch.device("cpu"), is_main_process=True, trackers=())
            settings = deepspeed_config(str(file), built.config, processes)
            engine = ZeroEngine(alone, Student(unet), trained, built.config, settings)
            setup, most_in_passes, most_in_steps = alive.most(), 0, 0
            if offload == "none":
                engine.optimizer.param_groups[0]["foreach"] = True  # the default on a GPU
            step = engine.deepspeed.step

            def watched() -> None:
                nonlocal most_in_passes, most_in_steps
                most_in_passes = max(most_in_passes, alive.most())
                step()
                most_in_steps = max(most_in_steps, alive.most())

            engine.deepspeed.step = watched
            for _ in range(2 * batches):
                rows = torch.randn(1, 4, 8, 8), torch.tensor([1]), torch.randn(1, 77, 16)
                with torch.no_grad(), engine.gather_params():
                    unet(*rows)
                engine.backward_and_step(engine.predict(*rows).square().mean(), 1e-3, measure=False)
            engine.close()
        if processes > 1:
            import deepspeed

            deepspeed.comm.destroy_process_group()
        return built, setup, most_in_passes, most_in_steps

    return watch


@pytest.mark.parametrize(
    ("stage", "processes", "batches"),
    [(1, 1, 1), (1, 4, 1), (2, 1, 1), (2, 4, 2), pytest.param(3, 1, 1, marks=pytest.mark.slow), (3, 4, 1)],
)
def test_zero_takes_what_is_told(
    stage: Any, processes: int, batches: int, deepspeed_at_work: Any, small: ModelShapes
) -> None:
    built, setup, in_passes, in_steps = deepspeed_at_work(stage, "none", processes, batches)
    result = memory(built, small, processes=processes, zero=stage, bucket=SMALL_BUCKET)
    whole = result.student + result.gathered_params
    if stage < 3:
        assert whole + result.setup == pytest.approx(setup, rel=0.01)
    forward_passes = whole + result.optimizer + result.gradients + result.communication + result.training
    steps = result.student + result.optimizer + result.update
    assert forward_passes == pytest.approx(in_passes, rel=0.1 if stage > 1 else 0.15)
    # Stage 1 brings the gradients together before its step, where all of them are there still.
    assert max(forward_passes, steps) == pytest.approx(max(in_passes, in_steps), rel=0.1)
    if stage > 1:
        assert steps == pytest.approx(in_steps, rel=0.01)


@pytest.mark.parametrize(
    ("stage", "offload", "processes", "batches"),
    [
        (2, "optimizer", 1, 1),
        (2, "optimizer", 4, 2),
        pytest.param(3, "optimizer", 1, 1, marks=pytest.mark.slow),
        pytest.param(3, "all", 4, 1, marks=pytest.mark.slow),
    ],
)
def test_zero_with_offload_takes_what_is_told(
    stage: Any, offload: Any, processes: int, batches: int, deepspeed_at_work: Any, small: ModelShapes
) -> None:
    built, _, _, in_steps = deepspeed_at_work(stage, offload, processes, batches)
    result = memory(built, small, processes=processes, zero=stage, offload=offload, bucket=SMALL_BUCKET)
    # The largest gradient, a convolution's, has a place on the GPU in stages 1 and 2.
    waiting = 4 * 9 * 256 * 128 if stage < 3 else 0
    assert result.student + result.update + waiting + result.host == pytest.approx(in_steps, rel=0.01)


def test_offloading_copies_the_trained_weights_on_the_gpu_first(sd: ModelShapes, esd_u: Method) -> None:
    """DeepSpeed's `.detach().clone().to(device="cpu")`: for a moment, and then that is the most."""
    found = memory(esd_u, sd, zero=2, offload="optimizer")
    assert found.peak == found.base + 4 * UNET + 4 * U
    assert fits(found, 16)
    # Values, gradients, a buffer, two moments; the root of the second, and corrected; the largest gradient.
    assert found.host == 4 * 7 * U + 4 * 9 * 2560 * 1280


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_what_a_step_of_torchs_optimisers_lays_aside(
    optimizer: str, decay: float, device: Any, small: ModelShapes
) -> None:
    """On a GPU they are of the `foreach` kind, which a CPU can be told to take."""
    values = torch.zeros(100_000, requires_grad=True)
    maker: Any = OPTIMIZERS[optimizer]
    stepped = maker([values], lr=0.1, weight_decay=decay, foreach=device == "gpu")
    values.grad = torch.ones_like(values)
    stepped.step()
    state = [tensor for tensor in stepped.state[values].values() if isinstance(tensor, torch.Tensor)]
    with Alive([tensor.untyped_storage()._cdata for tensor in (values, values.grad, *state)]) as alive:
        stepped.step()
    built = method("esd", variant="u", optimizer=optimizer, weight_decay=decay)
    trained = 4 * sum(value.numel() for value in trained_tensors(built, small)[1].values())
    if device == "gpu":
        aside = memory(built, small).update - trained
    else:
        result = memory(built, small, zero=3, offload="optimizer")
        aside = result.host - (3 + len(state) // 3 * 2) * trained  # a state: a step, and two moments
    assert aside / trained == pytest.approx(alive.peak / values.nbytes, rel=0.001)


def test_a_deepspeed_config_of_ones_own_counts_as_it_stands(tmp_path: Path) -> None:
    def read(**zero: Any) -> tuple[int, str, int]:
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump({"zero_optimization": zero}))
        found = memory_options(TrainingOptions(deepspeed=str(file)))
        return found["zero"], found["offload"], found["bucket"]

    assert read(stage=2, offload_optimizer={"device": "none"}) == (2, "none", 500_000_000)  # DeepSpeed's default
    assert read(stage=2, offload_optimizer={"device": "cpu"}, reduce_bucket_size=1000) == (2, "optimizer", 1000)
    assert read(stage=2, overlap_comm=True, reduce_bucket_size=1000) == (2, "none", 2000)  # one more while one is sent
    assert read(stage=3, offload_param={"device": "cpu"}, reduce_bucket_size=1000) == (3, "all", 1000)
    assert read(stage=3, overlap_comm=True, reduce_bucket_size=1000) == (3, "none", 1000)


def test_the_bucket_is_that_of_the_configs() -> None:
    files = sorted((CONFIGS / "deepspeed").glob("*.yaml"))
    sizes = {file.stem: read_yaml(file)["zero_optimization"]["reduce_bucket_size"] for file in files}
    assert sizes and set(sizes.values()) == {BUCKET}


def test_in_bf16_trained_weights_stay_fp32_and_the_teacher_is_copied(sd: ModelShapes) -> None:
    found = memory(method("esd", precision="bf16"), sd)
    assert (found.student, found.teacher) == (4 * X + 2 * (UNET - X), 2 * UNET)
    assert (found.gradients, found.optimizer) == (4 * X, 8 * X)
    assert found.base == 4 * (UNET + VAE + TEXT_ENCODER)


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 0), ("adamw", 8 * X), ("adam", 8 * X)])
def test_the_optimizer_decides_the_states(optimizer: str, states: int, sd: ModelShapes) -> None:
    assert memory(method("esd", optimizer=optimizer), sd).optimizer == states


def test_activations_are_those_of_the_batch(sd: ModelShapes) -> None:
    one, three = (memory(method("esd", batch_size=rows), sd) for rows in (1, 3))
    assert three.training == pytest.approx(3 * one.training, rel=0.01)
    assert three.rollout == pytest.approx(3 * one.rollout, rel=0.01)
    checkpointed = memory(method("esd", batch_size=3), sd, checkpointing=True)
    assert checkpointed.training < three.training / 2 and replace(checkpointed, training=three.training) == three


def test_a_closed_form_needs_its_base_and_the_new_values(sd: ModelShapes) -> None:
    """19,169,280 keys and values in fp32; the largest matrix, 1280 x 768, and its product in fp64."""
    found = memory(method("uce"), sd)
    assert found.peak == 4 * (UNET + VAE + TEXT_ENCODER) + 4 * 19_169_280 + 2 * 8 * 1280 * 768


def test_what_is_made_beforehand_counts_where_it_is_the_most(sd: ModelShapes) -> None:
    """CA draws images of the anchor, eight at once: at 512 px the VAE's widest tensors have 268 MB an image."""
    found = memory(method("ca", batch_size=1), sd)
    assert found.preparation > 8 * 2 * 4 * 256 * 512 * 512
    assert found.peak == found.base + found.student + found.preparation


def test_a_card_keeps_2_gb_for_itself() -> None:
    found = Memory(base=10**9, training=13 * 10**9)
    assert found.peak == 14 * 10**9 and fits(found, 16) and not fits(found, 15.9)


def test_peak_is_the_worst_phase() -> None:
    """Weights are there always; gradients, states and activations once the data are made; a step has its own."""
    counted = Memory(
        base=1, teacher=2, student=4, gathered_params=8, gradients=16, optimizer=32, communication=64, preparation=0,
        setup=0, rollout=128, training=256, update=0, host=10**6,
    )  # fmt: skip
    assert counted.peak == 127 + 256
    assert replace(counted, rollout=512).peak == 127 + 512
    assert replace(counted, preparation=1000).peak == replace(counted, setup=1000).peak == 15 + 1000
    assert replace(counted, update=1000).peak == 7 + 32 + 1000
