"""SQL conditions on the columns of the items, such as `price < 50 AND category = 'Nails'`.

The text of a condition comes from users, so no engine reads it. sqlglot parses it, after the
number and the nesting of its tokens are known to be small. Then every node of the syntax tree
becomes a polars expression; a node that is not listed here is refused.
"""

import operator
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import partial, reduce
from inspect import signature

import numpy as np
import polars as pl
from jaxtyping import Bool
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.parser import Parser as AnyParser
from sqlglot.tokens import Token, TokenType
from sqlglot.tokens import Tokenizer as AnyTokenizer

from jaxrec.errors import DataError

MAX_CONDITION = 4000  # characters
MAX_NESTING = 16  # open parentheses, CASE, and NOT or signs in a row: the parser is recursive
MAX_DEPTH = 100  # levels of the tree that the engine walks recursively
MAX_JOINED = 32  # texts joined by || and concat, which bounds the memory of a result
MAX_PATTERNS = 64
MAX_PATTERN = 200  # characters of a LIKE pattern or regular expression
MAX_REPEATS = 100  # product of the counts {n} of a regular expression
MAX_DIGITS = 18  # of a whole number in 64 bits
SINGLE_QUOTES = " Text stands in single quotes ('Nails'), double quotes name a column."
KEYWORDS = (
    "AND AS BETWEEN CASE ELSE END FALSE FROM ILIKE IN INTERVAL IS LIKE NOT NULL OR REGEXP RLIKE "
    "THEN TRUE WHEN CURRENT_DATE DISTINCT"
)
SYMBOLS = ":: || <= >= <> != == ~ ~* ~~ ~~* // <=>"
TYPES = {
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

        KEYWORDS = {
            word: AnyTokenizer.KEYWORDS[word]
            for word in f"{KEYWORDS} {SYMBOLS} {' '.join(TYPES)}".split()
            if word not in ("~", "//")
        } | {"~": TokenType.RLIKE, "//": TokenType.DIV}
        SINGLE_TOKENS = {
            sign: AnyTokenizer.SINGLE_TOKENS[sign] for sign in "()[],.-=><%!+/*:;{}|&^?@#\\'\"`"
        }

    class Parser(AnyParser):
        """Syntax of a condition."""

        FUNCTIONS = {}
        FUNCTION_PARSERS = {
            name: AnyParser.FUNCTION_PARSERS[name] for name in ("CAST", "EXTRACT", "TRIM", "TRY_CAST")
        }
        NO_PAREN_FUNCTIONS = {TokenType.CURRENT_DATE: exp.CurrentDate}
        NO_PAREN_FUNCTION_PARSERS = {"CASE": AnyParser.NO_PAREN_FUNCTION_PARSERS["CASE"]}


def where(items: pl.DataFrame, condition: str) -> Bool[np.ndarray, " I"]:
    """Rows of the item table that satisfy an SQL condition; null counts as false.

    The condition sees one row at a time: columns, literals, operators and `FUNCTIONS`.

    Raises:
        DataError: the condition is not valid, names an unknown column, compares different types,
            is not a truth value, exceeds a limit, or uses anything beyond its row (sub-queries,
            aggregates, windows, files); the message lists the columns.
    """
    try:
        expression = _expression(_parsed(condition), items.schema, MAX_DEPTH)
        kept = items.with_columns(expression.alias("kept"))["kept"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).strip().splitlines() or ["the engine fails on it"]
        raise _refused(items, condition, reason[0]) from error
    except (_Refused, OverflowError) as error:
        raise _refused(items, condition, str(error)) from error
    if kept.dtype != pl.Boolean:
        raise _refused(items, condition, f"it gives {kept.dtype}, not true or false")
    return kept.fill_null(False).to_numpy()


class _Refused(Exception):
    """The reason why a condition cannot be used."""


def _refused(items: pl.DataFrame, condition: str, reason: str) -> DataError:
    shown = condition if len(condition) <= MAX_CONDITION else f"{condition[:40]} ..."
    hint = SINGLE_QUOTES if '"' in condition else ""
    columns = ", ".join(items.columns)
    return DataError(
        f"the condition {shown!r} cannot be used: {reason}. Columns of the items: {columns}.{hint}"
    )


def _parsed(condition: str) -> exp.Expression:
    """The syntax tree of a condition within the limits."""
    if len(condition) > MAX_CONDITION:
        raise _Refused(f"it is longer than {MAX_CONDITION:,} characters")
    try:
        tokens = Condition().tokenize(condition)
        if not tokens:
            raise _Refused("it cannot be parsed: it is empty")
        if _nesting(tokens) > MAX_NESTING:
            raise _Refused(f"it nests more than {MAX_NESTING} deep")
        tree = Condition().parser().parse_into(exp.Condition, tokens, condition)[0]
    except SqlglotError as error:
        details = getattr(error, "errors", None) or [{}]
        reason = details[0].get("description") or str(error).split(":")[0]
        place = f" near {details[0]['highlight']!r}" if details[0].get("highlight") else ""
        raise _Refused(f"it cannot be parsed: {reason.rstrip('.')}{place}") from error
    except RecursionError as error:
        raise _Refused("it cannot be parsed: it nests too deep") from error
    if tree is None:
        raise _Refused("it cannot be parsed")
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


def _check_size(tree: exp.Expression) -> None:
    """Refuse a condition whose evaluation takes much memory or time in every row."""
    nodes = list(tree.walk())
    calls = [node for node in nodes if isinstance(node, exp.Anonymous)]
    patterns = sum(isinstance(node, tuple(PATTERNS)) for node in nodes)
    patterns += sum(node.name.lower() == "regexp_like" for node in calls)
    if patterns > MAX_PATTERNS:
        raise _Refused(f"it holds more than {MAX_PATTERNS} patterns")
    joined = sum(isinstance(node, exp.DPipe) for node in nodes)
    joined += sum(len(node.expressions) for node in calls if node.name.lower() == "concat")
    if joined > MAX_JOINED:
        raise _Refused(f"it joins more than {MAX_JOINED} texts")


def _constant(value: pl.Expr, kind: type, name: str):
    """The Python value of an expression without columns."""
    try:
        constant = pl.select(value).item()
    except pl.exceptions.ColumnNotFoundError as error:
        raise _Refused(f"{name} must be a constant, not a column") from error
    if not isinstance(constant, kind):
        raise _Refused(f"{name} must be a constant of type {kind.__name__}, not {constant!r}")
    return constant


def _regexp_like(text: pl.Expr, pattern: pl.Expr, flags: pl.Expr | None = None) -> pl.Expr:
    """Whether a regular expression matches a part of a text; polars' engine takes linear time."""
    regex = _constant(pattern, str, "a regular expression")
    letters = "" if flags is None else _constant(flags, str, "the flags of a regular expression")
    if len(regex) > MAX_PATTERN:
        raise _Refused(f"a regular expression is longer than {MAX_PATTERN} characters")
    counts = [int(count) for count in re.findall(r"[{,]\s*(\d{1,9})", regex)]
    if reduce(operator.mul, (max(count, 1) for count in counts), 1) > MAX_REPEATS:
        raise _Refused(f"a regular expression repeats a part more than {MAX_REPEATS} times")
    if not re.fullmatch("[imsx]*", letters):
        raise _Refused(f"the flags {letters!r} of a regular expression are not among i, m, s, x")
    return text.str.contains(f"(?{letters})" * bool(letters) + regex)


def _like(text: pl.Expr, pattern: pl.Expr, flags: str = "s") -> pl.Expr:
    """Whether a whole text fits a pattern of % (any text) and _ (any character)."""
    like = _constant(pattern, str, "the pattern of LIKE")
    if len(like) > MAX_PATTERN:
        raise _Refused(f"a pattern of LIKE is longer than {MAX_PATTERN} characters")
    regex = pl.escape_regex(like.strip("%")).replace("%", ".*").replace("_", ".")
    start, end = "^" * (not like.startswith("%")), "$" * (not like.endswith("%"))
    return text.str.contains(f"(?{flags}){start}{regex}{end}")


def _joined(*texts: pl.Expr, ignore_nulls: bool = False) -> pl.Expr:
    return pl.concat_str(texts, ignore_nulls=ignore_nulls)


def _round(value: pl.Expr, digits: pl.Expr = pl.lit(0)) -> pl.Expr:
    decimals = _constant(digits, int, "the number of decimals")
    if not 0 <= decimals <= MAX_DIGITS:
        raise _Refused(f"round takes 0 to {MAX_DIGITS} decimals, not {decimals}")
    return value.round(decimals)


def _remainder(value: pl.Expr, divisor: pl.Expr) -> pl.Expr:
    """SQL gives the remainder the sign of the dividend."""
    return value.abs() % divisor.abs() * value.sign()


def _substr(text: pl.Expr, start: pl.Expr, length: pl.Expr | None = None) -> pl.Expr:
    """Characters from `start`, counted from 1; places before the text count for the length."""
    first = _constant(start, int, "the start of substr")
    if length is None:
        return text.str.slice(max(first - 1, 0))
    end = first + _constant(length, int, "the length of substr")
    return text.str.slice(max(first - 1, 0), max(end - max(first, 1), 0))


DATE_PARTS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "century": lambda x: x.dt.century(),
    "day": lambda x: x.dt.day(),
    "dow": lambda x: x.dt.weekday() % 7,
    "doy": lambda x: x.dt.ordinal_day(),
    "epoch": lambda x: x.dt.timestamp("us") / 1_000_000,
    "hour": lambda x: x.dt.hour(),
    "isodow": lambda x: x.dt.weekday(),
    "minute": lambda x: x.dt.minute(),
    "month": lambda x: x.dt.month(),
    "quarter": lambda x: x.dt.quarter(),
    "second": lambda x: x.dt.second(),
    "week": lambda x: x.dt.week(),
    "year": lambda x: x.dt.year(),
}


def _date_part(part: pl.Expr, value: pl.Expr) -> pl.Expr:
    name = _constant(part, str, "the part of a date").lower()
    if name not in DATE_PARTS:
        raise _Refused(f"{name!r} is not one of the parts of a date: {', '.join(DATE_PARTS)}")
    return DATE_PARTS[name](value)


# Each looks at one row. Aggregates, windows, readers of files and `replace`, which makes texts of
# any length, are left out.
FUNCTIONS: dict[str, Callable[..., pl.Expr]] = {
    "abs": lambda x: x.abs(),
    "array_contains": lambda values, value: values.list.contains(value),
    "array_length": lambda values: values.list.len(),
    "array_to_string": lambda values, between: values.cast(pl.List(pl.String)).list.join(between),
    "ceil": lambda x: x.ceil(),
    "char_length": lambda text: text.str.len_chars(),
    "coalesce": lambda first, *others: pl.coalesce(first, *others),
    "concat": lambda first, *others: _joined(first, *others, ignore_nulls=True),
    "date": lambda text, form=pl.lit("%Y-%m-%d"): text.str.to_date(_constant(form, str, "a format")),
    "date_part": _date_part,
    "ends_with": lambda text, end: text.str.ends_with(end),
    "exp": lambda x: x.exp(),
    "floor": lambda x: x.floor(),
    "greatest": lambda first, *others: pl.max_horizontal(first, *others),
    "if": lambda test, yes, no: pl.when(test).then(yes).otherwise(no),
    "ifnull": lambda value, other: pl.coalesce(value, other),
    "initcap": lambda text: text.str.to_titlecase(),
    "least": lambda first, *others: pl.min_horizontal(first, *others),
    "left": lambda text, count: text.str.head(count),
    "length": lambda text: text.str.len_chars(),
    "ln": lambda x: x.log(),
    "log": lambda x, base: x.log(_constant(base, int | float, "the base of log")),
    "lower": lambda text: text.str.to_lowercase(),
    "ltrim": lambda text, chars=None: text.str.strip_chars_start(chars),
    "mod": _remainder,
    "nullif": lambda value, other: pl.when(value == other).then(None).otherwise(value),
    "pow": lambda x, exponent: x.pow(exponent),
    "regexp_like": _regexp_like,
    "right": lambda text, count: text.str.tail(count),
    "round": _round,
    "rtrim": lambda text, chars=None: text.str.strip_chars_end(chars),
    "sign": lambda x: x.sign(),
    "sqrt": lambda x: x.sqrt(),
    "starts_with": lambda text, start: text.str.starts_with(start),
    "strpos": lambda text, part: (text.str.find(part, literal=True) + 1).fill_null(0),
    "substr": _substr,
    "trim": lambda text, chars=None: text.str.strip_chars(chars),
    "upper": lambda text: text.str.to_uppercase(),
}
REPEATING = ("mod", "nullif")  # their expressions hold an argument twice

PATTERNS: dict[type[exp.Expression], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    exp.Like: _like,
    exp.ILike: partial(_like, flags="is"),
    exp.RegexpLike: _regexp_like,
    exp.RegexpILike: partial(_regexp_like, flags=pl.lit("i")),
}
OPERATORS: dict[type[exp.Expression], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
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
    exp.Mod: _remainder,
    **PATTERNS,
}


def _expression(node: exp.Expression, schema: pl.Schema, depth: int) -> pl.Expr:
    """The expression of a syntax tree of at most `depth` levels; a long chain is one level."""
    if depth <= 0:
        raise _Refused(f"it nests or chains more than {MAX_DEPTH} operators")
    build = partial(_expression, schema=schema, depth=depth - 1)
    if node.args.get("negate"):
        node.set("negate", None)
        return ~build(node)
    if isinstance(node, exp.Mod) or (isinstance(node, exp.Anonymous) and node.name in REPEATING):
        build = partial(_expression, schema=schema, depth=depth // 4)
    match node:
        case exp.Paren():
            return build(node.this)
        case exp.Column():
            return _column(node, schema)
        case exp.Literal() | exp.Boolean() | exp.Null() | exp.Neg(this=exp.Literal()):
            return pl.lit(_value(node))
        case exp.And():
            return _balanced(operator.and_, [build(part) for part in _chain(node)])
        case exp.Or():
            return _balanced(operator.or_, [build(part) for part in _chain(node)])
        case exp.DPipe():
            return _joined(*(build(part) for part in _chain(node)))
        case exp.Not():
            return ~build(node.this)
        case exp.Neg():
            return -build(node.this)
        case exp.Is(this=value, expression=exp.Null()):
            return build(value).is_null()
        case exp.Is(this=value, expression=exp.Boolean() as truth):
            return build(value).eq_missing(pl.lit(truth.this))
        case exp.In(this=value, expressions=[_, *_] as others):
            return _is_in(value, others, schema, build)
        case exp.Between() if not node.args.get("symmetric"):
            return build(node.this).is_between(build(node.args["low"]), build(node.args["high"]))
        case exp.Case():
            return _case(node, schema, depth - len(node.args["ifs"]))
        case exp.Cast():
            return _cast(node, build)
        case exp.Extract(this=exp.Var(), expression=value):
            return _date_part(pl.lit(node.name), build(value))
        case exp.Trim(this=text, expression=chars):
            return _trim(build(text), build(chars) if chars else None, node.args.get("position"))
        case exp.CurrentDate():
            return pl.lit(date.today())
        case exp.Interval(this=exp.Literal() as count, unit=exp.Var() as unit):
            return _interval(count.name, unit.name.lower().removesuffix("s") + "s")
        case exp.Anonymous():
            return _call(node.name.lower(), [build(argument) for argument in node.expressions])
        case exp.Binary() if type(node) in OPERATORS:
            return OPERATORS[type(node)](build(node.this), build(node.expression))
    raise _Refused(f"{type(node).__name__} is not supported in a condition")


def _chain(node: exp.Expression) -> list[exp.Expression]:
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


def _column(node: exp.Column, schema: pl.Schema) -> pl.Expr:
    name = ".".join(part.name for part in node.parts)
    if len(node.parts) > 1 or name not in schema:
        raise _Refused(f"there is no column {name!r}")
    return pl.col(name)


def _is_literal(node: exp.Expression) -> bool:
    inner = node.this if isinstance(node, exp.Neg) else node
    return isinstance(inner, exp.Literal | exp.Boolean | exp.Null)


def _value(node: exp.Expression) -> str | int | float | bool | None:
    """The Python value of a literal."""
    match node:
        case exp.Null():
            return None
        case exp.Neg(this=exp.Literal(is_string=False) as number):
            return -_value(number)
        case exp.Boolean() | exp.Literal(is_string=True):
            return node.this
    try:
        small = node.name.isdigit() and len(node.name) <= MAX_DIGITS
        return int(node.name) if small else float(node.name)
    except ValueError as error:
        raise _Refused(f"{node.name!r} is not a number") from error


def _is_in(
    node: exp.Expression, others: Sequence[exp.Expression], schema: pl.Schema, build: Callable
) -> pl.Expr:
    """Whether a value equals one of others; null where only a null keeps this open."""
    value = build(node)
    if not all(_is_literal(other) for other in others):
        if not isinstance(node, exp.Column):  # or nested lists would multiply
            raise _Refused("IN compares a column with other columns, or any value with literals")
        return _balanced(operator.or_, [value == build(other) for other in others])
    literals = [_value(other) for other in others]
    listed = [literal for literal in literals if literal is not None]
    kinds = {type(literal) for literal in listed}
    if kinds <= {int, float} and kinds:
        column = isinstance(node, exp.Column) and schema[node.name]
        exact = kinds == {int} and column and column.is_integer()
        number = pl.Int64 if exact else pl.Float64
        found = value.cast(number).is_in(pl.Series(listed, dtype=number))
    elif len(kinds) <= 1:
        found = value.is_in(listed)
    else:
        raise _Refused("the values of IN are of different types")
    return found if len(listed) == len(literals) else found | pl.lit(None, pl.Boolean)


def _case(node: exp.Case, schema: pl.Schema, depth: int) -> pl.Expr:
    """CASE as nested conditions: the engine's tree is as deep as there are branches."""
    build = partial(_expression, schema=schema, depth=depth - 1)
    if not isinstance(node.this, exp.Column | None):  # or nested subjects would multiply
        raise _Refused("CASE takes a column, or no value, before WHEN")
    subject, default = node.this, node.args.get("default")
    result = build(default) if default else pl.lit(None)
    for branch in reversed(node.args["ifs"]):
        test = build(branch.this) if subject is None else build(subject) == build(branch.this)
        result = pl.when(test).then(build(branch.args["true"])).otherwise(result)
    return result


def _cast(node: exp.Cast, build: Callable) -> pl.Expr:
    """CAST and TRY_CAST, which gives null where a value does not fit; dates as text are read."""
    value, name = node.this, node.to.this.name if hasattr(node.to.this, "name") else node.to.name
    if name not in TYPES or node.to.expressions or node.args.get("format"):
        raise _Refused(f"the type {node.to.sql()} is not one of {', '.join(TYPES)}")
    kind = TYPES[name]
    if value.is_string and name in ("DATE", "DATETIME", "TIMESTAMP"):
        try:
            moment = datetime.fromisoformat(value.name)
        except ValueError as error:
            raise _Refused(f"{value.name!r} is not a {name} such as '2025-01-31'") from error
        return pl.lit(moment.replace(tzinfo=None)).cast(kind)
    return build(value).cast(kind, strict=not isinstance(node, exp.TryCast))


def _trim(text: pl.Expr, chars: pl.Expr | None, position: str | None) -> pl.Expr:
    match position:
        case "LEADING":
            return text.str.strip_chars_start(chars)
        case "TRAILING":
            return text.str.strip_chars_end(chars)
    return text.str.strip_chars(chars)


def _interval(count: str, unit: str) -> pl.Expr:
    units = ("weeks", "days", "hours", "minutes", "seconds")
    if unit not in units or not re.fullmatch(r"-?\d{1,6}", count):
        raise _Refused(f"an interval is a whole number of {', '.join(units)}, such as '7 days'")
    return pl.duration(**{unit: int(count)})


def _call(name: str, arguments: Sequence[pl.Expr]) -> pl.Expr:
    if name not in FUNCTIONS:
        raise _Refused(f"{name!r} is not one of the functions {', '.join(FUNCTIONS)}")
    try:
        signature(FUNCTIONS[name]).bind(*arguments)
    except TypeError as error:
        raise _Refused(f"{name} takes {signature(FUNCTIONS[name])}: {error}") from error
    return FUNCTIONS[name](*arguments)
