"""The expressions and pipelines of MongoDB that the tasks use, for `SimulatedMongod`."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from datetime import datetime, timedelta
from typing import Any

Document = dict[str, Any]


class _Missing:
    """The value of a field that is not there."""

    def __repr__(self) -> str:
        return "missing"


MISSING = _Missing()


def _type(value: Any) -> str:
    return "missing" if value is MISSING else type(value).__name__


def _add(values: list[Any]) -> Any:
    if any(value is MISSING for value in values):
        return None  # as the server does: then no test can miss it
    first, second = values
    if isinstance(first, datetime):
        return first + timedelta(milliseconds=second)
    return first + second


def _subtract(values: list[Any]) -> Any:
    first, second = values
    if MISSING in values:
        return None
    if isinstance(first, datetime) and isinstance(second, datetime):
        return round((first - second).total_seconds() * 1000)
    if isinstance(first, datetime):
        return first - timedelta(milliseconds=second)
    return first - second


def _known(values: list[Any]) -> list[Any]:
    return [value for value in values if value is not MISSING and value is not None]


_OPERATORS: dict[str, Callable[[Any], Any]] = {
    "$eq": lambda values: values[0] == values[1],
    "$ne": lambda values: values[0] != values[1],
    "$lt": lambda values: values[0] < values[1],
    "$lte": lambda values: values[0] <= values[1],
    "$gt": lambda values: values[0] > values[1],
    "$in": lambda values: values[0] in values[1],
    "$not": lambda values: not values[0],
    "$add": _add,
    "$subtract": _subtract,
    "$max": lambda values: max(_known(values)),
    "$type": _type,
    "$concatArrays": lambda values: [each for value in values for each in value],
    "$slice": lambda values: values[0][: values[1]],
}


class Evaluation:
    """What expressions mean at a time, for a document."""

    def __init__(self, document: Document, now: datetime) -> None:
        self._document = document
        self._now = now

    def value(self, expression: Any) -> Any:
        """Return the value of an expression; only the branch of a condition that holds."""
        if isinstance(expression, str) and expression.startswith("$"):
            return self._variable(expression)
        if isinstance(expression, list):
            return [self.value(each) for each in expression]
        if not isinstance(expression, dict):
            return expression
        name = next(iter(expression), "")
        if not name.startswith("$"):
            fields = {field: self.value(each) for field, each in expression.items()}
            return {field: each for field, each in fields.items() if each is not MISSING}
        return self._operation(name, expression[name])

    def _variable(self, name: str) -> Any:
        if name == "$$NOW":
            return self._now
        if name == "$$ROOT":
            return deepcopy(self._document)
        if name == "$$REMOVE":
            return MISSING
        field = name[1:]
        return deepcopy(self._document[field]) if field in self._document else MISSING

    def _operation(self, name: str, operand: Any) -> Any:
        if name == "$literal":
            return operand
        if name == "$cond":
            condition, then, otherwise = operand
            return self.value(then if self.value(condition) else otherwise)
        if name == "$or":
            return any(self.value(each) for each in operand)  # the first that holds
        if name == "$and":
            return all(self.value(each) for each in operand)
        if name == "$ifNull":
            value = self.value(operand[0])
            return self.value(operand[1]) if value is MISSING or value is None else value
        return _OPERATORS[name](self.value(operand))


def piped(document: Document, pipeline: list[Document], now: datetime) -> Document:
    """Return a document after the stages of an update."""
    document = deepcopy(document)
    for stage in pipeline:
        ((name, operand),) = stage.items()
        evaluation = Evaluation(document, now)
        if name == "$replaceWith":
            document = evaluation.value(operand)
        elif name == "$set":
            values = {field: evaluation.value(each) for field, each in operand.items()}
            document = {**document, **values}
            document = {field: each for field, each in document.items() if each is not MISSING}
        else:
            raise NotImplementedError(name)
    return document
