"""How near the scheduler comes to what is possible, 8 to 4,096 GPUs; `python -m benchmarks.simulate`.

Replays the campaign esd-ablation in virtual time (`benchmarks.scheduler.simulate`): on equal GPUs by three seeds, then
on GPUs of two speeds, with failures and with preemptions. Writes benchmarks/results/simulate.json.
"""

import time
from dataclasses import asdict
from typing import Any

from benchmarks.record import write_result
from benchmarks.scheduler.simulate import FailureModel, simulate
from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.campaign.rates import Rates, durations, read_rates
from efface.cluster.campaign.spec import read_campaign
from efface.cluster.storage.remaining import RemainingTasks

CAMPAIGN, RATES = "esd-ablation", "h200"
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SEEDS = (0, 1, 2)
PER_HOUR = 0.2


def forecasts(
    plan: Plan, rates: Rates, seed: int, speeds: tuple[float, ...], failures: FailureModel
) -> list[dict[str, Any]]:
    """One for each size, with the seconds that the simulation itself took."""
    seconds, found = durations(plan, rates, seed), []
    for size in SIZES:
        start = time.perf_counter()
        forecast = simulate(
            RemainingTasks.everything(plan), seconds, [speeds[i % len(speeds)] for i in range(size)], rates, failures
        )
        found.append({**asdict(forecast), "simulated_in": round(time.perf_counter() - start, 3)})
    return found


def main() -> None:
    plan, rates = plan_campaign(read_campaign(CAMPAIGN), fetch=False), read_rates(RATES)
    cases = {f"equal GPUs, seed {seed}": forecasts(plan, rates, seed, (1.0,), FailureModel()) for seed in SEEDS}
    cases["every other GPU half as fast"] = forecasts(plan, rates, 0, (1.0, 0.5), FailureModel())
    cases[f"{PER_HOUR} failures an hour and GPU"] = forecasts(plan, rates, 0, (1.0,), FailureModel(PER_HOUR, 0.0, 0))
    cases[f"{PER_HOUR} preemptions an hour and GPU"] = forecasts(plan, rates, 0, (1.0,), FailureModel(0.0, PER_HOUR, 0))
    print(f"{len(plan.jobs)} jobs, {plan.shard_count} shards, {plan.images} images; {rates.device}")
    print(f"makespan / lower bound by GPUs: {'':23}" + "".join(f"{size:>7,}" for size in SIZES))
    for name, found in cases.items():
        print(f"{name:55}" + "".join(f"{f['makespan'] / f['bound']:7.3f}" for f in found))
    counts = {"jobs": len(plan.jobs), "shards": plan.shard_count, "images": plan.images}
    print(write_result("simulate", cases, campaign=CAMPAIGN, **counts, rates=rates.model_dump(mode="json")))


if __name__ == "__main__":
    main()
