"""SQL conditions on the columns of the items, such as `price < 50 AND category = 'Nails'`.

Conditions come from users, so no engine reads their text. The length and the nesting of the tokens
are checked, then sqlglot parses them, and every node of the syntax tree becomes a polars
expression. A node that is not listed here is refused.
"""

import operator
import re
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from inspect import signature
from itertools import compress
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
    Refused,
    date_part,
    like,
    quotient,
    regexp_like,
    remainder,
)
from jaxrec.ranking.condition_values import (
    TYPES,
    constant_of,
    exact,
    is_in,
    is_moment,
    kind_of,
    literal,
    moments,
)

Node = exp.Expression
MAX_CONDITION = 4000  # characters
MAX_NESTING = 16  # open parentheses, CASE, and NOT or signs in a row: the parser is recursive
MAX_DEPTH = 100  # levels of the tree that the engine walks recursively
MAX_JOINED = 32  # texts joined by || and concat, which bounds the memory of a result
MAX_PATTERNS = 64
MAX_ROWS = 2**15  # at a time, which bounds the memory of long texts
SINGLE_QUOTES = " Text stands in single quotes ('Nails'), double quotes name a column."
KEYWORDS = (
    "AND AS BETWEEN CASE ELSE END FALSE FROM ILIKE IN INTERVAL IS LIKE NOT NULL OR REGEXP RLIKE "
    "THEN TRUE WHEN CURRENT_DATE DISTINCT"
)
SYMBOLS = ":: || <= >= <> != == ~ ~* ~~ ~~* // <=>"


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
        starts = range(0, max(len(items), 1), MAX_ROWS)
        parts = (items[row : row + MAX_ROWS].rechunk() for row in starts)
        kept = pl.concat([_evaluated(expression, part) for part in parts])
    except (PolarsError, PanicException, Refused, OverflowError) as error:
        reason = str(error).strip().splitlines() or ["the engine fails on it"]
        raise _refused(items, condition, reason[0]) from error
    if kept.dtype != pl.Boolean:
        raise _refused(items, condition, f"it gives {kept.dtype}, not true or false")
    return kept.fill_null(False).to_numpy()


def _evaluated(expression: pl.Expr, items: pl.DataFrame) -> pl.Series:
    """The value of an expression in every row; one without columns gives a single value.

    Of a table in several chunks, the engine would give one value for each of them.
    """
    values = items.select(expression.alias("kept")).to_series()
    return values.new_from_index(0, len(items)) if len(values) == 1 else values


def _refused(items: pl.DataFrame, condition: str, reason: str) -> DataError:
    text = str(condition)
    shown = condition if len(text) <= MAX_CONDITION else f"{text[:40]} ..."
    hint = SINGLE_QUOTES if '"' in text else ""
    columns = ", ".join(items.columns)
    return DataError(
        f"the condition {shown!r} cannot be used: {reason}. Columns of the items: {columns}.{hint}"
    )


def _parsed(condition: str) -> Node:
    """The syntax tree of a condition within the limits."""
    if not isinstance(condition, str):
        raise Refused("it is not a text")
    if len(condition) > MAX_CONDITION:
        raise Refused(f"it is longer than {MAX_CONDITION:,} characters")
    try:
        condition.encode()
        tokens = Condition().tokenize(condition)
    except UnicodeEncodeError as error:
        raise Refused("it holds half of a surrogate pair, which is no character") from error
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


# these use an operand twice, as %, // and BETWEEN do, so each level doubles the expression
REPEATING = ("mod", "nullif", "strpos")

PATTERNS: dict[type[Node], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    exp.Like: like,
    exp.ILike: partial(like, flags="is"),
    exp.RegexpLike: regexp_like,
    exp.RegexpILike: partial(regexp_like, flags=pl.lit("i")),
}
ORDERS: dict[type[Node], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    exp.LT: operator.lt,
    exp.LTE: operator.le,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
}
COMPARISONS: dict[type[Node], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    **ORDERS,
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.NullSafeEQ: lambda left, right: left.eq_missing(right),
    exp.NullSafeNEQ: lambda left, right: left.ne_missing(right),
}
OPERATORS: dict[type[Node], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    exp.Add: operator.add,
    exp.Sub: operator.sub,
    exp.Mul: operator.mul,
    exp.Div: operator.truediv,
    exp.IntDiv: quotient,
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
    if isinstance(node, exp.Mod | exp.IntDiv | exp.Between) or node.name.lower() in REPEATING:
        build = partial(_expression, items=items, depth=depth // 4)
    match node:
        case exp.Paren():
            return build(node.this)
        case exp.Column():
            return _column(node, items)
        case exp.Literal() | exp.Boolean() | exp.Null() | exp.Neg(this=exp.Literal()):
            return constant_of(literal(node))
        case exp.And():
            return _balanced(operator.and_, [build(part) for part in _chain(node)])
        case exp.Or():
            return _balanced(operator.or_, [build(part) for part in _chain(node)])
        case exp.DPipe():
            return pl.concat_str([build(part) for part in _chain(node)])
        case exp.Not():
            return ~build(node.this)
        case exp.Neg():
            return build(node.this) * constant_of(-1)
        case exp.Is(this=value, expression=exp.Null()):
            return build(value).is_null()
        case exp.Is(this=value, expression=exp.Boolean() as truth):
            return build(value).eq_missing(pl.lit(truth.this))
        case exp.In(this=value, expressions=[_, *_] as others):
            return _is_in(value, others, items, build)
        case exp.Between() if not node.args.get("symmetric"):
            return _between(node, items, build)
        case exp.Case():
            return _case(node, items, depth - len(node.args["ifs"]))
        case exp.Cast():
            return _cast(node, build)
        case exp.Extract(this=exp.Var(), expression=value):
            return date_part(pl.lit(node.name), build(value))
        case exp.Trim():
            return _trim(node, build)
        case exp.CurrentDate():
            return pl.lit(date.today())
        case exp.Interval(this=exp.Literal() as count, unit=exp.Var() as unit):
            return _interval(count.name, unit.name.lower().removesuffix("s") + "s")
        case exp.Anonymous():
            return _call(node.name.lower(), [build(argument) for argument in node.expressions])
        case exp.Binary() if type(node) in COMPARISONS:
            _check_comparison(node)
            return COMPARISONS[type(node)](*_comparable([node.this, node.expression], items, build))
        case exp.Mul() if node.this.find(exp.Mul) or node.expression.find(exp.Mul):
            # only the product of two whole numbers is certain to fit
            return build(node.this).cast(pl.Float64) * build(node.expression).cast(pl.Float64)
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
    return exact(pl.col(name), items.schema[name])


def _check_comparison(node: Node) -> None:
    """Refuse `1 < price < 3`, which compares a truth value with 3."""
    for side in (node.this, node.expression):
        inner = side.unnest() if side and type(node) in ORDERS else side
        if isinstance(inner, exp.Predicate):
            raise Refused("a comparison stands inside another; join the two by AND")


def _comparable(nodes: Sequence[Node], items: pl.DataFrame, build: Callable) -> list[pl.Expr]:
    """The operands of a comparison; a text literal beside a date or time becomes one."""
    values = [build(node) for node in nodes]
    is_text = [node.is_string for node in nodes]
    others = [value for value, text in zip(values, is_text, strict=True) if not text]
    if any(is_text) and others and is_moment(kind := kind_of(others[0], items)):
        for place in compress(range(len(nodes)), is_text):
            times = moments([nodes[place].name], kind)
            values[place] = pl.lit(times[0], times.dtype)
    return values


def _is_literal(node: Node) -> bool:
    value = node.this if isinstance(node, exp.Neg) else node
    return isinstance(value, exp.Literal | exp.Boolean | exp.Null)


def _between(node: Node, items: pl.DataFrame, build: Callable) -> pl.Expr:
    value, low, high = _comparable([node.this, node.args["low"], node.args["high"]], items, build)
    return (value >= low) & (value <= high)


def _trim(node: Node, build: Callable) -> pl.Expr:
    """TRIM of one side or both, with the characters that it names, if any."""
    side = {"LEADING": "ltrim", "TRAILING": "rtrim"}.get(node.text("position"), "trim")
    return FUNCTIONS[side](build(node.this), build(node.expression) if node.expression else None)


def _is_in(node: Node, others: Sequence[Node], items: pl.DataFrame, build: Callable) -> pl.Expr:
    """Whether a value equals one of others; null if it equals none and one of them is null."""
    if not all(_is_literal(other) for other in others):
        if not isinstance(node, exp.Column):  # its expression is repeated for every value
            raise Refused("IN compares a column with other columns, or any value with literals")
        pairs = [_comparable([node, other], items, build) for other in others]
        return _balanced(operator.or_, [value == other for value, other in pairs])
    value, literals = build(node), [literal(other) for other in others]
    listed = [entry for entry in literals if entry is not None]
    is_listed = is_in(value, listed, kind_of(value, items))
    return is_listed if len(listed) == len(literals) else is_listed | pl.lit(None, pl.Boolean)


def _case(node: exp.Case, items: pl.DataFrame, depth: int) -> pl.Expr:
    """CASE as nested conditions: every branch makes the engine's tree one level deeper."""
    build = partial(_expression, items=items, depth=depth - 1)
    if not isinstance(node.this, exp.Column | None):  # its expression is repeated in every branch
        raise Refused("CASE takes a column, or no value, before WHEN")
    subject, default = node.this, node.args.get("default")
    result = build(default) if default else pl.lit(None)
    for branch in reversed(node.args["ifs"]):
        if subject is None:
            test = build(branch.this)
        else:
            test = operator.eq(*_comparable([subject, branch.this], items, build))
        result = pl.when(test).then(build(branch.args["true"])).otherwise(result)
    return result


def _cast(node: exp.Cast, build: Callable) -> pl.Expr:
    """CAST, and TRY_CAST, which gives null where a value does not fit. Text becomes a date."""
    value, name = node.this, node.to.this.name if hasattr(node.to.this, "name") else node.to.name
    if name not in TYPES or node.to.expressions or node.args.get("format"):
        raise Refused(f"the type {node.to.sql()} is not one of {', '.join(TYPES)}")
    kind = TYPES[name]
    if value.is_string and name in ("DATE", "DATETIME", "TIMESTAMP"):
        return pl.lit(moments([value.name], kind)[0]).cast(kind)
    return exact(build(value).cast(kind, strict=not isinstance(node, exp.TryCast)), kind)


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
