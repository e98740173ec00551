"""Invoice tables in the columns of UCI's "Online Retail" as events and items."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from jaxrec.data.columns import as_cells, require, wrong_type
from jaxrec.data.tables import REQUIRED_COLUMNS, Tables, TimeKind, validate_tables
from jaxrec.errors import DataError

INVOICE_SPELLINGS = {"Invoice": "InvoiceNo", "Price": "UnitPrice", "Customer ID": "CustomerID"}
INVOICE_COLUMNS = (
    *("InvoiceNo", "StockCode", "Description", "Quantity"),
    *("InvoiceDate", "UnitPrice", "CustomerID"),
)
HAS_CUSTOMER = pl.col("user_id").is_not_null()
IS_PRODUCT = pl.col("item_id").str.contains(r"^\d{5}")


def is_invoice_table(columns: Sequence[str]) -> bool:
    """Whether a file with these columns is an invoice table, not an events table."""
    return "item_id" not in columns and "stockcode" in map(str.lower, columns)


def invoice_events(table: pl.DataFrame, path: str) -> pl.DataFrame:
    """Purchases and cancellations of an invoice table, not yet validated.

    Raises a DataError if the table lacks a column.
    """
    rows = _invoice_rows(table, path)
    return rows.filter(HAS_CUSTOMER, IS_PRODUCT).select(*REQUIRED_COLUMNS, "event")


def invoice_tables(table: pl.DataFrame, path: str, time: TimeKind, strict: bool) -> Tables:
    """The tables of an invoice table: its rows as events, its products as items."""
    all_rows = _invoice_rows(table, path)
    of_customers = all_rows.filter(HAS_CUSTOMER)
    rows = of_customers.filter(IS_PRODUCT)
    anonymous, services = len(all_rows) - len(of_customers), len(of_customers) - len(rows)
    notes = (
        f"{path}: rows dropped because they name no customer: {anonymous:,}.",
        f"{path}: rows dropped because their code is no product (five digits): {services:,}.",
    )
    events, origin = rows.select(*REQUIRED_COLUMNS, "event"), (path, path, path)
    tables = validate_tables(events, _products(rows), None, origin=origin, time=time, strict=strict)
    return replace(tables, notes=(*notes, *tables.notes))


def _invoice_rows(table: pl.DataFrame, path: str) -> pl.DataFrame:
    names = {name.lower(): name for name in (*INVOICE_COLUMNS, *INVOICE_SPELLINGS)}
    table = table.rename({c: names[c.lower()] for c in table.columns if c.lower() in names})
    for spelling, name in INVOICE_SPELLINGS.items():
        if {spelling, name} <= set(table.columns):
            raise DataError(f"{path}: {spelling!r} and {name!r} mean the same; remove one of them")
    raw = table.rename(INVOICE_SPELLINGS, strict=False)
    invoices = pl.DataFrame([require(raw, name, path) for name in INVOICE_COLUMNS])
    for name in ("Quantity", "UnitPrice"):
        if not invoices[name].dtype.is_numeric():
            raise wrong_type(invoices[name], path, "numbers")
    texts = ("InvoiceNo", "StockCode", "Description", "CustomerID")
    invoices = invoices.with_columns(as_cells(invoices[name], path) for name in texts)
    is_credit_note = pl.col("InvoiceNo").str.starts_with("C")
    cancelled = is_credit_note | (pl.col("Quantity") < 0)
    return invoices.select(
        user_id=pl.col("CustomerID").str.strip_suffix(".0"),
        item_id=pl.col("StockCode").str.strip_chars().str.to_uppercase(),
        timestamp="InvoiceDate",
        event=pl.when(cancelled).then(pl.lit("cancel")).otherwise(pl.lit("buy")),
        title=pl.col("Description").str.strip_chars(),
        price="UnitPrice",
    )


def _products(rows: pl.DataFrame) -> pl.DataFrame:
    """Items in order of appearance, with the most frequent title and the median price of sales."""
    is_sale = pl.col("event") == "buy"
    return rows.group_by("item_id", maintain_order=True).agg(
        pl.col("title").filter(is_sale).drop_nulls().mode(maintain_order=True).first(),
        pl.col("price").filter(is_sale).median(),
    )
