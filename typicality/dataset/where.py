"""The language of `--where`: which rows to keep. Comparisons, and / or / not, in, parentheses, columns, literals.

    camera == 'a' and year >= 1950
    `Patient ID` not in (3, 5) or not blurred
    city is not None

The text is parsed with `ast` and checked node by node; nothing in it is ever executed. A column beside a number
equals it as a number, beside text in quotes as text unless it is a column of numbers, beside another column as a number
where both cells are; below and above are of numbers wherever both sides are some. A missing value (or an empty cell)
equals None and '', and is neither below nor above anything. A column on its own holds unless it is missing, 0, 'false'
or 'no'. Names that are not Python names are written in backticks.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from typicality.dataset.labels import number_of_text, text_of
from typicality.errors import DatasetError, nearest

Row = Mapping[str, Any]
Value = Callable[[Row], Any]
Test = Callable[[Row], bool]

LONGEST = 2000  # characters
FALSE = {"", "0", "false", "no"}
ORDERINGS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
ALLOWED = "comparisons, 'and', 'or', 'not', 'in', parentheses, column names, numbers and quoted text"


def compile_where(expression: str, columns: Iterable[str]) -> Test:
    """Return a function that tells whether a row (column -> value) is kept.

    Raises
    ------
    DatasetError : the expression cannot be read, uses anything else than the language above, or names a column
        that does not exist; later, while rows are tested, where text is compared with a number.
    """
    names: dict[str, str] = {}

    def plain(match: re.Match[str]) -> str:
        names[f"column_{len(names)}_"] = match.group(1)
        return f" column_{len(names) - 1}_ "

    text = re.sub(r"`([^`]*)`", plain, expression).strip()
    if len(text) > LONGEST:
        raise DatasetError(f"--where is longer than {LONGEST} characters: prepare a column for it instead")
    try:
        tree = ast.parse(text, mode="eval")
        return _Compiler(expression, names, tuple(columns)).test(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        detail = getattr(error, "msg", None) or str(error) or "it is nested too deeply"
        raise DatasetError(
            f"--where {expression!r} cannot be read ({detail}); write for instance \"camera == 'a' and year >= 1950\"; "
            "a column whose name has spaces or is a word of Python is written in backticks: `class` == 'x'"
        ) from None


class _Compiler:
    """Turns allowed syntax into functions of a row, and refuses the rest."""

    def __init__(self, expression: str, quoted: Mapping[str, str], columns: tuple[str, ...]) -> None:
        self.expression = expression
        self.quoted = quoted
        self.columns = columns

    def refuse(self, node: ast.AST) -> DatasetError:
        what = type(node).__name__.lower()
        return DatasetError(f"--where {self.expression!r} holds a {what}, which is not allowed: use only {ALLOWED}")

    def test(self, node: ast.expr) -> Test:
        if isinstance(node, ast.BoolOp):
            parts = [self.test(value) for value in node.values]
            if isinstance(node.op, ast.And):
                return lambda row: all(part(row) for part in parts)
            return lambda row: any(part(row) for part in parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.test(node.operand)
            return lambda row: not inner(row)
        if isinstance(node, ast.Compare):
            return self.comparison(node)
        value = self.value(node)
        return lambda row: _holds(value(row))

    def comparison(self, node: ast.Compare) -> Test:
        sides = [node.left, *node.comparators]
        tests = [self.pair(op, left, right) for op, left, right in zip(node.ops, sides[:-1], sides[1:], strict=True)]
        return lambda row: all(test(row) for test in tests)

    def pair(self, op: ast.cmpop, left: ast.expr, right: ast.expr) -> Test:
        first = self.value(left)
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.Tuple, ast.List, ast.Set)):
                raise DatasetError(f"--where {self.expression!r}: 'in' needs a list, as in  camera in ('a', 'b')")
            tests = [self.pair(ast.Eq(), left, choice) for choice in right.elts]
            wanted = isinstance(op, ast.In)
            return lambda row: any(test(row) for test in tests) is wanted
        second = self.value(right)
        quoted = any(isinstance(node, ast.Constant) and isinstance(node.value, str) for node in (left, right))
        if isinstance(op, (ast.Eq, ast.Is)):
            return lambda row: _equal(first(row), second(row), quoted)
        if isinstance(op, (ast.NotEq, ast.IsNot)):
            return lambda row: not _equal(first(row), second(row), quoted)
        ordering = ORDERINGS[type(op)]
        return lambda row: self.ordered(ordering, first(row), second(row))

    def ordered(self, ordering: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
        texts = text_of(left), text_of(right)
        if "" in texts:
            return False
        numbers = _numbers(left, right)
        if None not in numbers:
            return ordering(*numbers)
        for value, number, other in zip((left, right), numbers, (right, left), strict=True):
            if number is None and isinstance(other, (int, float)):
                raise DatasetError(f"--where {self.expression!r} compares {value!r} with the number {other!r}")
        return ordering(*texts)

    def value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool, type(None))):
            constant = node.value
            return lambda row: constant
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            operand = node.operand
            if isinstance(operand, ast.Constant) and type(operand.value) in (int, float):
                signed = -operand.value if isinstance(node.op, ast.USub) else operand.value  # type: ignore[operator]
                return lambda row: signed
        if isinstance(node, ast.Name):
            name = self.quoted.get(node.id, node.id)
            if name not in self.columns:
                raise DatasetError(
                    f"--where {self.expression!r}: there is no column {name!r}; {nearest(name, self.columns)} "
                    "(text is written in quotes)"
                )
            return lambda row: row.get(name)
        raise self.refuse(node)


def _holds(value: Any) -> bool:
    return text_of(value).lower() not in FALSE


def _equal(left: Any, right: Any, quoted: bool) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return _holds(left) == _holds(right)
    if text_of(left) == text_of(right):
        return True
    if quoted and not any(isinstance(side, (int, float, Decimal)) for side in (left, right)):
        return False  # a number in quotes is text, as a code 007 is; CSV cells, which are all text, decide nothing
    numbers = _numbers(left, right)
    return None not in numbers and numbers[0] == numbers[1]


def _numbers(left: Any, right: Any) -> tuple[float | None, float | None]:
    """Return both sides as numbers, with None for what is none."""
    return number_of_text(text_of(left)), number_of_text(text_of(right))
