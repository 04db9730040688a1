"""Work that processes share before they train: each does a part, and all get the whole."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import distributed

Item = TypeVar("Item")
Result = TypeVar("Result")


def distributed_map(items: Sequence[Item], function: Callable[[Item], Result]) -> list[Result]:
    """`function` of every item, in order. Process r of n does the items k with k mod n = r.

    All processes of the group call it with the same items. Results travel pickled: tensors should be on the CPU.
    """
    rank, size = _rank_and_world_size()
    parts = all_gather([function(item) for item in items[rank::size]])
    return [parts[k % size][k // size] for k in range(len(items))]


def all_gather(own: Result) -> list[Result]:
    """The value of each process of the group, by rank; all of them call it."""
    _, size = _rank_and_world_size()
    if size == 1:
        return [own]
    gathered: list[Any] = [None] * size
    distributed.all_gather_object(gathered, own)
    return gathered


def _rank_and_world_size() -> tuple[int, int]:
    """Rank and size of the group; 0 and 1 for a process alone."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
