"""What attacks came to, as a table: static and adaptive attacks in columns of their own, never in one number.

The rates of several concepts and seeds of one method are those of all their instances together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import MappingProxyType

from rich import box
from rich.table import Column, Table

from efface.csv_tables import csv_table
from efface.eval.attacking.attack_result import ENDS, AttackResult, prompt_rate, recovery_curve, success_rates
from efface.files import write_atomic
from efface.text_tables import text_table


@dataclass(frozen=True)
class AttackRow:
    """An attack on the models of a method. A rate is None where it is not known, and of the other kind."""

    method: str
    attack: str
    concepts: int
    pre_asr: float | None
    static_post_asr: float | None
    adaptive_post_asr: float | None
    prompt_rate: float | None
    """Of the images by a static attack's prompts, the share that shows the concept."""
    recovery: str
    """Share that is back after so many steps; "" where an attack has none."""
    judged: int
    unjudged: int
    unknown: int
    """Of the judged, those of which nobody knows whether the attack shows the concept."""
    out_of_budget: int
    calls: int
    seconds: float
    note: str
    """What is to be known before the rates are believed."""

    @property
    def remark(self) -> str:
        """A line below the table; "" where there is nothing to say."""
        return "; ".join(filter(None, [self.recovery and f"back after {self.recovery}", self.note]))


def attack_rows(
    results: Iterable[AttackResult], missing: Mapping[tuple[str, str], int] = MappingProxyType({})
) -> list[AttackRow]:
    """A row for each method and attack, in the order they come.

    missing: of a method and attack, how many were planned and are not done. Where all are, there is a row to say so.
    """
    groups: dict[tuple[str, str], list[AttackResult]] = {}
    for result in results:
        groups.setdefault((result.method, result.attack), []).append(result)
    for pair in missing:
        groups.setdefault(pair, [])
    return [_row(*pair, some, missing.get(pair, 0)) for pair, some in groups.items()]


def _row(method: str, attack: str, results: Sequence[AttackResult], missing: int) -> AttackRow:
    kinds = {result.kind for result in results}
    instances = [instance for result in results for instance in result.instances]
    rates = success_rates(instances)
    notes = dict.fromkeys(note for result in results for note in (result.note, result.caveat) if note)
    if missing:
        notes[f"{missing} of {missing + len(results)} attacks have no result, and are in no rate"] = None
    if rates.unknown and rates.bounds:
        notes["post-ASR is between {:.2f} and {:.2f}".format(*rates.bounds)] = None
    return AttackRow(
        method=method,
        attack=attack,
        concepts=len({result.concept for result in results}),
        pre_asr=rates.pre,
        static_post_asr=rates.post if "static" in kinds else None,
        adaptive_post_asr=rates.post if "adaptive" in kinds else None,
        prompt_rate=prompt_rate(instances) if "static" in kinds else None,
        recovery=", ".join(f"{point.steps} steps {point.share:.2f}" for point in recovery_curve(instances)),
        judged=rates.judged,
        unjudged=len(instances) - rates.judged,
        unknown=rates.unknown,
        out_of_budget=sum(result.ends.get(ENDS[3], 0) for result in results),
        calls=sum(result.calls for result in results),
        seconds=sum(result.seconds for result in results),
        note="; ".join(notes),
    )


def write_attack_csv(path: Path, rows: Sequence[AttackRow]) -> None:
    """Every number in full; an empty cell where there is none."""
    text = csv_table([field.name for field in fields(AttackRow)], map(astuple, rows))
    write_atomic(path, text.encode())


def attack_table(rows: Sequence[AttackRow]) -> Table:
    """Pre-ASR, and Post-ASR of static and of adaptive attacks apart, for a terminal."""
    rates = "pre-ASR", "post-ASR static", "post-ASR adaptive", "per prompt"
    numbers = [Column(name, justify="right") for name in (*rates, "judged", "calls", "seconds")]
    lines = [
        (
            row.method,
            row.attack,
            *map(_rate, (row.pre_asr, row.static_post_asr, row.adaptive_post_asr, row.prompt_rate)),
            f"{row.judged} of {row.judged + row.unjudged}",
            f"{row.calls:,}",
            f"{row.seconds:.0f}",
        )
        for row in rows
    ]
    return text_table([Column("method"), Column("attack"), *numbers], lines, box=box.HEAVY_HEAD, padding=(0, 1))


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.2f}"
