"""Same-seed strips: for each question (prompt and seed) the images of the base and of every model, failures first.

What is wrong and what costs score are two things: a concept that methods may see is asked for, and no ERR counts it.
They are kept compactly, as lists that refer to each other by number, and drawn by the script in the file.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from efface.eval.report.queries import ImageAnswer, Question, answers, uncounted
from efface.eval.report.reported_run import RunContent
from efface.eval.report.thumbnails import Sprites
from efface.eval.scores.scoring import BASE
from efface.text import shown

NO_ANSWER, ABSENT, PRESENT = -1, 0, 1


@dataclass(frozen=True)
class Strips:
    """The answers of a run, as columns of models and rows of questions."""

    columns: tuple[tuple[str, int], ...]
    """Method and number of the model, the base first."""
    questions: tuple[Question, ...]
    """Those that cost the most models score come first, then those that most models get wrong."""
    answers: Mapping[tuple[str, int], Mapping[Question, ImageAnswer]]
    uncounted: Set[Question]
    """Those that no ERR counts."""

    @property
    def images(self) -> list[str]:
        """Hashes of all images: first those of questions that some model gets wrong, then the rest."""
        failing: list[str] = []
        others: list[str] = []
        for question in self.questions:
            here = [answer for column in self.columns if (answer := self.answers[column].get(question))]
            is_failing = any(answer.is_failure(question[1]) for answer in here)
            (failing if is_failing else others).extend(answer.image for answer in here)
        return [*failing, *others]

    def as_json(self, sprites: Sprites, is_linked: bool = False) -> dict[str, Any]:
        """For the script: texts once, and for each column one list of [state, score, thumbnail, error] by question.

        is_linked: a fifth item of an answer is the name of the image's own file, where there is an image.
        """
        texts: dict[str, int] = {}

        def number(text: str) -> int:
            return texts.setdefault(shown(text), len(texts))

        questions = [
            [number(concept), number(axis), number(asked), number(prompt), seed]
            for concept, axis, asked, prompt, seed in self.questions
        ]
        cells = [
            [self._cell(self.answers[column].get(question), sprites, number, is_linked) for question in self.questions]
            for column in self.columns
        ]
        columns = [shown(name if not index else f"{name} ({index + 1})") for name, index in self.columns]
        not_counted = [i for i, question in enumerate(self.questions) if question in self.uncounted]
        return {
            "texts": list(texts),
            "columns": columns,
            "questions": questions,
            "uncounted": not_counted,
            "cells": cells,
        }

    @staticmethod
    def _cell(answer: ImageAnswer | None, sprites: Sprites, number: Any, is_linked: bool) -> list[Any] | None:
        if answer is None:
            return None
        state = NO_ANSWER if answer.present is None else PRESENT if answer.present else ABSENT
        score = None if answer.score is None else round(answer.score, 4)
        error = number(answer.error) if answer.error else None
        cell = [state, score, sprites.positions.get(answer.image), error]
        return [*cell, image_file(answer.image)] if is_linked and answer.image not in sprites.missing else cell


def make_strips(run: RunContent) -> Strips:
    """The questions of the headline's judge."""
    found = answers(run.table, run.judge)
    columns = sorted(found, key=lambda column: (column[0] != BASE, _rank(run, column[0]), column))
    edited = [column for column in columns if column[0] != BASE]
    questions = {question for column in edited or columns for question in found[column]}

    not_counted = uncounted(run.table, run.judge)

    def rank(question: Question) -> tuple[bool, int, Question]:
        wrong = sum(
            answer.is_failure(question[1]) for column in edited if (answer := found[column].get(question)) is not None
        )
        return question in not_counted or not wrong, -wrong, question

    return Strips(tuple(columns), tuple(sorted(questions, key=rank)), found, not_counted)


def image_file(sha: str) -> str:
    """The name of an image's file, where each has one."""
    return f"{sha[:24]}.png"


def _rank(run: RunContent, method: str) -> int:
    """The method's line of the leaderboard."""
    labels: Sequence[str] = [row.method for row in run.rows]
    return labels.index(method) if method in labels else len(labels)
