"""SQL conditions on the columns of the items, such as `price < 50 AND category = 'Nails'`.

Conditions come from users, so no engine reads their text. The length and the nesting of the tokens
are checked, then sqlglot parses them, and every node of the syntax tree becomes a polars
expression. A node that is not listed here is refused.
"""

import operator
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import partial
from inspect import signature
from typing import Any, ClassVar, cast

import numpy as np
import polars as pl
from jaxtyping import Bool
from polars.exceptions import PanicException, PolarsError
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.parser import Parser as AnyParser
from sqlglot.tokens import Token, TokenType
from sqlglot.tokens import Tokenizer as AnyTokenizer

from jaxrec.errors import DataError
from jaxrec.ranking.condition_functions import (
    FUNCTIONS,
    MAX_DIGITS,
    Refused,
    date_part,
    like,
    regexp_like,
    remainder,
)

Node = exp.Expression
MAX_CONDITION = 4000  # characters
MAX_NESTING = 16  # open parentheses, CASE, and NOT or signs in a row: the parser is recursive
MAX_DEPTH = 100  # levels of the tree that the engine walks recursively
MAX_JOINED = 32  # texts joined by || and concat, which bounds the memory of a result
MAX_PATTERNS = 64
SINGLE_QUOTES = " Text stands in single quotes ('Nails'), double quotes name a column."
KEYWORDS = (
    "AND AS BETWEEN CASE ELSE END FALSE FROM ILIKE IN INTERVAL IS LIKE NOT NULL OR REGEXP RLIKE "
    "THEN TRUE WHEN CURRENT_DATE DISTINCT"
)
SYMBOLS = ":: || <= >= <> != == ~ ~* ~~ ~~* // <=>"
TYPES: dict[str, Any] = {
    "BIGINT": pl.Int64,
    "BOOLEAN": pl.Boolean,
    "DATE": pl.Date,
    "DATETIME": pl.Datetime("us"),
    "DOUBLE": pl.Float64,
    "FLOAT": pl.Float64,
    "INT": pl.Int32,
    "INTEGER": pl.Int32,
    "REAL": pl.Float32,
    "SMALLINT": pl.Int16,
    "TEXT": pl.String,
    "TIMESTAMP": pl.Datetime("us"),
    "TINYINT": pl.Int8,
    "VARCHAR": pl.String,
}


class Condition(Dialect):
    """SQL reduced to conditions: every other word is a name, every function is anonymous."""

    class Tokenizer(AnyTokenizer):
        """Tokens of a condition."""

        KEYWORDS: ClassVar[dict] = {
            word: AnyTokenizer.KEYWORDS[word]
            for word in f"{KEYWORDS} {SYMBOLS} {' '.join(TYPES)}".split()
            if word not in ("~", "//")
        } | {"~": TokenType.RLIKE, "//": TokenType.DIV}
        SINGLE_TOKENS: ClassVar[dict] = {
            sign: AnyTokenizer.SINGLE_TOKENS[sign] for sign in "()[],.-=><%!+/*:;{}|&^?@#\\'\"`"
        }

    class Parser(AnyParser):
        """Syntax of a condition."""

        FUNCTIONS: ClassVar[dict] = {}
        FUNCTION_PARSERS: ClassVar[dict] = {
            name: AnyParser.FUNCTION_PARSERS[name]
            for name in ("CAST", "EXTRACT", "TRIM", "TRY_CAST")
        }
        NO_PAREN_FUNCTIONS: ClassVar[dict] = {TokenType.CURRENT_DATE: exp.CurrentDate}
        NO_PAREN_FUNCTION_PARSERS: ClassVar[dict] = {
            "CASE": AnyParser.NO_PAREN_FUNCTION_PARSERS["CASE"]
        }


def where(items: pl.DataFrame, condition: str) -> Bool[np.ndarray, " I"]:
    """Rows of the item table that satisfy an SQL condition; null counts as false.

    The condition sees one row at a time: columns, literals, operators and `FUNCTIONS`.

    Raises:
        DataError: the condition is not valid, names an unknown column, compares different types,
            is not a truth value, exceeds a limit, or uses anything beyond its row (sub-queries,
            aggregates, windows, files); the message lists the columns.
    """
    try:
        expression = _expression(_parsed(condition), items, MAX_DEPTH)
        kept = items.select(expression.alias("kept"))["kept"]
    except (PolarsError, PanicException, Refused, OverflowError) as error:
        reason = str(error).strip().splitlines() or ["the engine fails on it"]
        raise _refused(items, condition, reason[0]) from error
    if kept.dtype != pl.Boolean:
        raise _refused(items, condition, f"it gives {kept.dtype}, not true or false")
    if len(kept) == 1:  # a condition that is the same for all rows
        kept = kept.new_from_index(0, len(items))
    return kept.fill_null(False).to_numpy()


def _refused(items: pl.DataFrame, condition: str, reason: str) -> DataError:
    shown = condition if len(condition) <= MAX_CONDITION else f"{condition[:40]} ..."
    hint = SINGLE_QUOTES if '"' in condition else ""
    columns = ", ".join(items.columns)
    return DataError(
        f"the condition {shown!r} cannot be used: {reason}. Columns of the items: {columns}.{hint}"
    )


def _parsed(condition: str) -> Node:
    """The syntax tree of a condition within the limits."""
    if len(condition) > MAX_CONDITION:
        raise Refused(f"it is longer than {MAX_CONDITION:,} characters")
    try:
        tokens = Condition().tokenize(condition)
    except SqlglotError as error:
        raise Refused("it cannot be parsed; check the quotes") from error
    if _nesting(tokens) > MAX_NESTING:
        raise Refused(f"it nests more than {MAX_NESTING} deep")
    try:
        (tree,) = Condition().parser().parse_into(exp.Condition, tokens, condition)
    except Exception as error:  # malformed text also makes sqlglot raise errors of its internals
        details = getattr(error, "errors", None) or [{}]
        place = f" near {details[0]['highlight']!r}" if details[0].get("highlight") else ""
        raise Refused(f"it cannot be parsed{place}; check operands, quotes and names") from error
    if not isinstance(tree, Node):
        raise Refused("it cannot be parsed: it is empty")
    _check_size(tree)
    return tree


def _nesting(tokens: Sequence[Token]) -> int:
    """Most levels that the parser has open at once."""
    opening = (TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.CASE)
    closing = (TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.END)
    prefixes = (TokenType.NOT, TokenType.DASH, TokenType.PLUS, TokenType.RLIKE, TokenType.INTERVAL)
    level = deepest = run = 0
    for token in tokens:
        run = run + 1 if token.token_type in prefixes else 0
        level += (token.token_type in opening) - (token.token_type in closing)
        deepest = max(deepest, level + run)
    return deepest


def _check_size(tree: Node) -> None:
    """Refuse a condition whose evaluation takes much memory or time in every row."""
    nodes = list(tree.walk())
    calls = [node for node in nodes if isinstance(node, exp.Anonymous)]
    patterns = sum(isinstance(node, tuple(PATTERNS)) for node in nodes)
    patterns += sum(node.name.lower() == "regexp_like" for node in calls)
    if patterns > MAX_PATTERNS:
        raise Refused(f"it holds more than {MAX_PATTERNS} patterns")
    joined = sum(isinstance(node, exp.DPipe) for node in nodes)
    joined += sum(len(node.expressions) for node in calls if node.name.lower() == "concat")
    if joined > MAX_JOINED:
        raise Refused(f"it joins more than {MAX_JOINED} texts")


# these use an operand twice, as % and BETWEEN do, so each level of nesting doubles the expression
REPEATING = ("mod", "nullif")

PATTERNS: dict[type[Node], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    exp.Like: like,
    exp.ILike: partial(like, flags="is"),
    exp.RegexpLike: regexp_like,
    exp.RegexpILike: partial(regexp_like, flags=pl.lit("i")),
}
OPERATORS: dict[type[Node], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
    exp.NullSafeEQ: lambda left, right: left.eq_missing(right),
    exp.NullSafeNEQ: lambda left, right: left.ne_missing(right),
    exp.Add: operator.add,
    exp.Sub: operator.sub,
    exp.Mul: operator.mul,
    exp.Div: operator.truediv,
    exp.IntDiv: lambda left, right: (left / right).cast(pl.Int64, strict=False),
    exp.Mod: remainder,
    **PATTERNS,
}


def _expression(node: Node | None, items: pl.DataFrame, depth: int) -> pl.Expr:
    """The expression of a syntax tree of at most `depth` levels; a long chain is one level."""
    if node is None:
        raise Refused("it cannot be parsed: an operand is missing")
    if depth <= 0:
        raise Refused(f"it nests or chains more than {MAX_DEPTH} operators")
    build = partial(_expression, items=items, depth=depth - 1)
    if node.args.get("negate"):
        node.set("negate", None)
        return ~build(node)
    if isinstance(node, exp.Mod | exp.Between) or node.name.lower() in REPEATING:
        build = partial(_expression, items=items, depth=depth // 4)
    match node:
        case exp.Paren():
            return build(node.this)
        case exp.Column():
            return _column(node, items)
        case exp.Literal() | exp.Boolean() | exp.Null() | exp.Neg(this=exp.Literal()):
            return pl.lit(_value(node))
        case exp.And():
            return _balanced(operator.and_, [build(part) for part in _chain(node)])
        case exp.Or():
            return _balanced(operator.or_, [build(part) for part in _chain(node)])
        case exp.DPipe():
            return pl.concat_str([build(part) for part in _chain(node)])
        case exp.Not():
            return ~build(node.this)
        case exp.Neg():
            return -build(node.this)
        case exp.Is(this=value, expression=exp.Null()):
            return build(value).is_null()
        case exp.Is(this=value, expression=exp.Boolean() as truth):
            return build(value).eq_missing(pl.lit(truth.this))
        case exp.In(this=value, expressions=[_, *_] as others):
            return _is_in(value, others, items, build)
        case exp.Between() if not node.args.get("symmetric"):
            value = build(node.this)
            return (value >= build(node.args["low"])) & (value <= build(node.args["high"]))
        case exp.Case():
            return _case(node, items, depth - len(node.args["ifs"]))
        case exp.Cast():
            return _cast(node, build)
        case exp.Extract(this=exp.Var(), expression=value):
            return date_part(pl.lit(node.name), build(value))
        case exp.Trim(this=text, expression=chars):
            side = {"LEADING": "ltrim", "TRAILING": "rtrim"}.get(node.text("position"), "trim")
            return FUNCTIONS[side](build(text), build(chars) if chars else None)
        case exp.CurrentDate():
            return pl.lit(date.today())
        case exp.Interval(this=exp.Literal() as count, unit=exp.Var() as unit):
            return _interval(count.name, unit.name.lower().removesuffix("s") + "s")
        case exp.Anonymous():
            return _call(node.name.lower(), [build(argument) for argument in node.expressions])
        case exp.Binary() if type(node) in OPERATORS:
            return OPERATORS[type(node)](build(node.this), build(node.expression))
    raise Refused(f"{type(node).__name__} is not supported in a condition")


def _chain(node: Node) -> list[Node]:
    """Operands of a chain of one operator, however long it is."""
    operands = []
    while type(node.this) is type(node):
        operands.append(node.expression)
        node = node.this
    return [node.this, node.expression, *reversed(operands)]


def _balanced(combine: Callable, operands: Sequence[pl.Expr]) -> pl.Expr:
    """All operands combined in a tree of little depth."""
    if len(operands) == 1:
        return operands[0]
    middle = len(operands) // 2
    return combine(_balanced(combine, operands[:middle]), _balanced(combine, operands[middle:]))


def _column(node: exp.Column, items: pl.DataFrame) -> pl.Expr:
    name = ".".join(part.name for part in node.parts)
    if len(node.parts) > 1 or name not in items.columns:
        raise Refused(f"there is no column {name!r}")
    return pl.col(name)


def _is_literal(node: Node) -> bool:
    value = node.this if isinstance(node, exp.Neg) else node
    return isinstance(value, exp.Literal | exp.Boolean | exp.Null)


def _value(node: Node) -> str | int | float | bool | None:
    """The Python value of a literal."""
    match node:
        case exp.Null():
            return None
        case exp.Boolean() | exp.Literal(is_string=True):
            return node.this
        case exp.Neg(this=exp.Literal() as literal):
            return -_number(literal.name)
    return _number(node.name)


def _number(text: str) -> int | float:
    try:
        return int(text) if text.isdigit() and len(text) <= MAX_DIGITS else float(text)
    except ValueError as error:
        raise Refused(f"{text!r} is not a number") from error


def _is_in(node: Node, others: Sequence[Node], items: pl.DataFrame, build: Callable) -> pl.Expr:
    """Whether a value equals one of others; null if it equals none and one of them is null."""
    value = build(node)
    if not all(_is_literal(other) for other in others):
        if not isinstance(node, exp.Column):  # its expression is repeated for every value
            raise Refused("IN compares a column with other columns, or any value with literals")
        return _balanced(operator.or_, [value == build(other) for other in others])
    literals = [_value(other) for other in others]
    listed = [literal for literal in literals if literal is not None]
    kinds = {type(literal) for literal in listed}
    if kinds <= {int, float} and kinds:
        column = isinstance(node, exp.Column) and items.schema[node.name]
        exact = kinds == {int} and column and column.is_integer()
        number = int if exact else float
        is_listed = value.cast(number).is_in([number(literal) for literal in listed])
    elif len(kinds) <= 1:
        is_listed = value.is_in(listed)
    else:
        raise Refused("the values of IN are of different types")
    return is_listed if len(listed) == len(literals) else is_listed | pl.lit(None, pl.Boolean)


def _case(node: exp.Case, items: pl.DataFrame, depth: int) -> pl.Expr:
    """CASE as nested conditions: every branch makes the engine's tree one level deeper."""
    build = partial(_expression, items=items, depth=depth - 1)
    if not isinstance(node.this, exp.Column | None):  # its expression is repeated in every branch
        raise Refused("CASE takes a column, or no value, before WHEN")
    subject, default = node.this, node.args.get("default")
    result = build(default) if default else pl.lit(None)
    for branch in reversed(node.args["ifs"]):
        test = build(branch.this) if subject is None else build(subject) == build(branch.this)
        result = pl.when(test).then(build(branch.args["true"])).otherwise(result)
    return result


def _cast(node: exp.Cast, build: Callable) -> pl.Expr:
    """CAST, and TRY_CAST, which gives null where a value does not fit. Text becomes a date."""
    value, name = node.this, node.to.this.name if hasattr(node.to.this, "name") else node.to.name
    if name not in TYPES or node.to.expressions or node.args.get("format"):
        raise Refused(f"the type {node.to.sql()} is not one of {', '.join(TYPES)}")
    kind = TYPES[name]
    if value.is_string and name in ("DATE", "DATETIME", "TIMESTAMP"):
        try:
            moment = datetime.fromisoformat(value.name)
        except ValueError as error:
            raise Refused(f"{value.name!r} is not a {name} such as '2025-01-31'") from error
        return pl.lit(moment.replace(tzinfo=None)).cast(kind)
    return build(value).cast(kind, strict=not isinstance(node, exp.TryCast))


def _interval(count: str, unit: str) -> pl.Expr:
    units = ("weeks", "days", "hours", "minutes", "seconds")
    if unit not in units or not re.fullmatch(r"-?\d{1,6}", count):
        raise Refused(f"an interval is a whole number of {', '.join(units)}, such as '7 days'")
    return pl.duration(**cast(Any, {unit: int(count)}))


def _call(name: str, arguments: Sequence[pl.Expr]) -> pl.Expr:
    if name not in FUNCTIONS:
        raise Refused(f"{name!r} is not one of the functions {', '.join(FUNCTIONS)}")
    try:
        signature(FUNCTIONS[name]).bind(*arguments)
    except TypeError as error:
        raise Refused(f"{name} takes {signature(FUNCTIONS[name])}: {error}") from error
    return FUNCTIONS[name](*arguments)
