"""What the processes of a gang make together before they train: each does a part, and all get the whole."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import distributed

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def shared_out(work: Sequence[Piece], do: Callable[[Piece], Result]) -> list[Result]:
    """`do` of every piece, in order. Process r of n does the pieces k with k mod n = r.

    All processes of the gang call it with the same work. Results travel pickled: tensors should be on the CPU.
    """
    rank, size = _place()
    parts = of_all([do(piece) for piece in work[rank::size]])
    return [parts[k % size][k // size] for k in range(len(work))]


def of_all(own: Result) -> list[Result]:
    """What each process of the gang has, by rank; all of them call it."""
    _, size = _place()
    if size == 1:
        return [own]
    told: list[Any] = [None] * size
    distributed.all_gather_object(told, own)
    return told


def _place() -> tuple[int, int]:
    """Rank and size of the gang; 0 and 1 for a process alone."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
