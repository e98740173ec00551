"""Random SQL conditions, typed so that most reach the engine, and a table for them."""

import re
from datetime import date, datetime

import polars as pl

from helpers.fuzzing import mutated
from jaxrec.ranking.condition_functions import DATE_PARTS, FUNCTIONS
from jaxrec.ranking.condition_values import TYPES
from jaxrec.ranking.conditions import KEYWORDS, MAX_CONDITION, SYMBOLS

# N number, T text, M moment, B truth value, L list, P pattern; the forms stand between semicolons
LEAVES = {
    "N": """price; n; u64; i8; f32; cost; 1; 0; -3; 2.5; 1e308; 1e999; 9223372036854775807;
        18446744073709551615; 99999999999999999999999; null; length(title)""",
    "T": f"title; 'x'; ''; 'é%_'; null; '{'y' * 300}'; ''''",
    "M": "day; at; date '9999-12-31'; date '0001-01-01'; current_date; '2024-01-01'",
    "B": "ok; true; null; price > 1; n = 1",
    "P": rf"""'%'; '{"%a" * 90}'; '(a{{50}}){{2}}'; '(\w{{9}}){{9}}'; '(\w{{99}}){{9}}'; '[[';
        '\p{{L}}*'; '(?i)x'; '{"(a|" * 40}'; '{"(a*)*" * 30}'; title; null""",
    "L": "tags; nums",
}
GROWN = {
    "N": """(N + N); (N - N); (N * N); N / N; N // N; N % N; -N; abs(N); ceil(N); exp(N); floor(N);
        ln(N); sign(N); sqrt(N); pow(N, N); mod(N, N); nullif(N, N); greatest(N, N); least(N, N);
        coalesce(N, N); ifnull(N, N); log(N, 2); round(N, 18); length(T); strpos(T, T);
        array_length(L); if(B, N, N); try_cast(T as double); cast(N as bigint); cast(N as tinyint);
        N::real; M - M; case when B then N else N end; case n when N then N end;
        extract(year from M); extract(epoch from M); date_part('dow', M)""",
    "T": """(T || T); concat(T, T, T); lower(T); upper(T); initcap(T); trim(T); trim(T, T);
        left(T, N); right(T, N); substr(T, -5, 18446744073709551615); array_to_string(L, ',');
        array_to_string(L, T); coalesce(T, T); nullif(T, T); cast(N as varchar); cast(M as text);
        case when B then T else T end; if(B, T, T); trim(leading T from T)""",
    "M": """(M + interval '999999' weeks); (M - interval '999999' days); (M + interval 5 hours);
        cast(M as date); cast(M as timestamp); try_cast(T as date); cast(N as timestamp);
        coalesce(M, M); date(T)""",
    "B": """(B and B); (B or B); not (B); (N = N); (N < N); (N >= N); (N <=> N); (T = T); (T < T);
        (M < M); (M = M); (B = B); (N between N and N); (M between M and M);
        (N in (1, 2.5, null, 1e999)); (T in ('x', '')); (M in ('2024-01-01')); (n in (N, price));
        (T like P); (T not ilike P); (T ~ P); (T !~ P); regexp_like(T, P, 'i'); (N is null);
        (B is not true); array_contains(nums, N); array_contains(tags, T); starts_with(T, T);
        (N is distinct from N)""",
}
PIECES = [
    *("--", "/*", "*/", ";", ",", "'", '"', "`", "$$", "{{", "\\", "\0", "\n", "é", "(", ")"),
    *KEYWORDS.split(),
    *SYMBOLS.split(),
    *TYPES,
    *FUNCTIONS,
    *DATE_PARTS,
]


def forms(group):
    return {kind: re.split(r";\s+", text) for kind, text in group.items()}


LEAF_FORMS, GROWN_FORMS = forms(LEAVES), forms(GROWN)


def table(rows):
    """A column of every type; some values are null."""
    numbers = range(rows)
    return pl.DataFrame(
        {
            "price": [None if row % 7 == 0 else 1.5 * row for row in numbers],
            "n": [row * 10**14 for row in numbers],
            "u64": pl.Series([2**64 - 1 - row for row in numbers], dtype=pl.UInt64),
            "i8": pl.Series([row % 256 - 128 for row in numbers], dtype=pl.Int8),
            "f32": pl.Series([row / 10 for row in numbers], dtype=pl.Float32),
            "cost": pl.Series([f"{row}.10" for row in numbers]).cast(pl.Decimal(12, 2)),
            "ok": [row % 2 == 0 for row in numbers],
            "title": [None if row % 5 == 0 else f"Title {row} é ẞ" * 3 for row in numbers],
            "tags": [["red", "new"] * (row % 4) for row in numbers],
            "nums": [[1, 2**60]] * rows,
            "day": [date(2024, 1, 1 + row % 28) for row in numbers],
            "at": [datetime(2024, 1, 1 + row % 28, row % 24) for row in numbers],
        }
    )


def grown(random, kind, depth):
    """A random expression of a kind, at most `depth` levels deep."""
    grows = depth > 0 and kind in GROWN_FORMS and random.random() < 0.9
    form = random.choice((GROWN_FORMS if grows else LEAF_FORMS)[kind])
    return re.sub(r"\b[NTMBLP]\b", lambda part: grown(random, part[0], depth - 1), form)


def condition(random):
    """A random condition of at most `MAX_CONDITION` characters; some are malformed."""
    text = grown(random, "B", random.randint(1, 8))
    if random.random() < 0.2:  # a long one
        sign = random.choice([" and ", " or ", " = ", " || ", "), (", " in ("])
        text = sign.join([text, *(grown(random, "B", 3) for _ in range(random.randint(1, 60)))])
    while random.random() < 0.2:
        place = random.randrange(len(text) + 1)
        text = f"{text[:place]} {random.choice(PIECES)} {text[place:]}"
    if random.random() < 0.2:
        text = mutated(random, text.encode()).decode(errors="surrogateescape")
    return text[:MAX_CONDITION]
