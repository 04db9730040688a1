"""How fast this GPU is beside others of the cluster, measured in a tenth of a second."""

import time

SIDE, REPEATS = 4096, 10


def matmul_speed() -> float:
    """10^12 operations a second in products of two matrices in half precision."""
    import torch

    one, other = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.float16) for _ in range(2))
    one @ other
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(REPEATS):
        one @ other
    torch.cuda.synchronize()
    return 2 * SIDE**3 * REPEATS / (time.perf_counter() - begin) / 1e12
