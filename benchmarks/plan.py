"""How long a plan of 10,000 jobs takes to expand; `python -m benchmarks.plan` writes benchmarks/results/plan.json.

The campaign is esd-ablation with more values in its sweep: 20 concepts x 100 variants x 5 seeds, 480 images a model.
No weights are read, so it runs on any machine.
"""

import os
import time

from benchmarks.record import write_result
from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.campaign.spec import Campaign, read_campaign
from efface.config_files import parse

REPEATS = 3


def large_campaign() -> Campaign:
    """10,000 jobs."""
    data = read_campaign("esd-ablation").model_dump(mode="json")
    sweep = {"eta": [0.25 * i for i in range(1, 11)], "learning_rate": [1e-6 * i for i in range(1, 11)]}
    return parse(Campaign, {**data, "methods": [{"method": "esd", "config": sweep}], "seeds": list(range(5))}, "large")


def main() -> None:
    campaign = large_campaign()
    plan_campaign(read_campaign("esd-ablation"), fetch=False)  # imports, and the method's module
    seconds, cpu = [], []
    for _ in range(REPEATS):
        start, cpu_start = time.perf_counter(), time.process_time()
        plan = plan_campaign(campaign, fetch=False)
        seconds.append(round(time.perf_counter() - start, 3))
        cpu.append(round(time.process_time() - cpu_start, 3))
    found = {"jobs": len(plan.jobs), "shards": plan.shard_count, "images": plan.images}
    counts = f"{plan.shard_count:,} shards, {plan.images:,} images"
    print(f"{len(plan.jobs):,} jobs, {counts}: {min(seconds):.2f} s, ", end="")
    print(f"of them {min(cpu):.2f} s on the processor")
    print(write_result("plan", {**found, "seconds": seconds, "cpu_seconds": cpu}, load=os.getloadavg()))


if __name__ == "__main__":
    main()
