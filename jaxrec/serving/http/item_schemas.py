"""Items as a shop sends them: strict types, bounded texts, lists and names."""

import math
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    model_validator,
)

from jaxrec.serving.http.schemas import Text
from jaxrec.serving.ids import is_id
from jaxrec.serving.live.item_recorder import ItemOutcome

MAX_ITEMS = 1000  # in one request
MAX_TEXT = 20_000  # characters
MAX_LABELS, MAX_NUMBERS = 256, 8192  # entries of one list
MAX_NAME = 64  # characters of the name of a column
MAX_OWN_COLUMNS = 128  # beside those of `Item`


def check_value(value: Any) -> Any:
    """Return the value of a column; raises a ValueError for any other, which says what to send."""
    if isinstance(value, str):
        return check_words(value)
    if isinstance(value, list):
        are_text = bool(value) and all(isinstance(entry, str) for entry in value)
        if len(value) > (MAX_LABELS if are_text else MAX_NUMBERS):
            raise ValueError(
                f"send at most {MAX_LABELS} texts or {MAX_NUMBERS:,} numbers in a list"
            )
        if not are_text and not all(_is_number(entry) for entry in value):
            raise ValueError("send a list of texts, or a list of numbers")
        return [check_value(entry) for entry in value]
    if value is None or isinstance(value, bool) or _is_number(value):
        return value
    raise ValueError("send text, a number of 64 bits, true or false, or a list of texts or numbers")


def check_words(text: str) -> str:
    """Return text that is not too long; raises a ValueError for half of a surrogate pair."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"send at most {MAX_TEXT:,} characters in a text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair, which is no character") from None
    return text


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def check_label(value: Any) -> Any:
    """Return a text, a whole number or a list of texts; raises a ValueError for other values."""
    if isinstance(value, float) and value.is_integer():  # JSON does not tell 3.0 from 3
        value = int(value)
    if isinstance(value, float | bool) or (isinstance(value, list) and not _are_texts(value)):
        raise ValueError("send a text, or a list of texts")
    return check_value(value)


def _are_texts(values: list) -> bool:
    return all(isinstance(value, str) for value in values)


Words = Annotated[str, Field(max_length=MAX_TEXT, strict=True), AfterValidator(check_words)]
Price = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Label = Annotated[
    Any, PlainValidator(check_label, json_schema_input_type=str | int | list[str] | None)
]
Value = Annotated[
    Any,
    PlainValidator(
        check_value, json_schema_input_type=str | float | bool | list[str] | list[float] | None
    ),
]


class ItemColumns(BaseModel):
    """What a shop knows of an item. Any other columns may follow, for conditions and display."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Value] = Field(init=False)

    title: Words | None = Field(None, examples=["Gel nail polish, red"])
    description: Words | None = None
    brand: Label = Field(None, examples=["Acme"])
    category: Label = None
    categories: Label = Field(
        None,
        description="a path from the root, as a list or joined by ` > `",
        examples=[["Beauty", "Nails"]],
    )
    genres: Label = None
    merchant: Label = None
    price: Price | None = Field(None, examples=[9.5])
    image_url: Words | None = None

    @model_validator(mode="after")
    def check_names(self) -> "ItemColumns":
        """Refuse too many columns, and names that a condition could not use."""
        own = self.__pydantic_extra__ or {}
        if len(own) > MAX_OWN_COLUMNS:
            raise ValueError(f"send at most {MAX_OWN_COLUMNS} columns of your own")
        for name in own:
            if len(name) > MAX_NAME or not is_id(name) or name != name.strip():
                raise ValueError(f"a column has a name of 1 to {MAX_NAME} characters")
            if name == "item_id":
                raise ValueError("the id of the item stands in the path")
        return self

    def sent(self) -> dict[str, Any]:
        """The columns that were sent, null included."""
        return self.model_dump(exclude_unset=True, exclude={"item_id"})


class Item(ItemColumns):
    """An item with its id."""

    item_id: Text = Field(examples=["B00IJ9"])


Items = Annotated[
    Annotated[Item, Tag("item")]
    | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS), Tag("items")],
    Discriminator(lambda body: "items" if isinstance(body, list) else "item"),
]


class ItemsRecorded(BaseModel):
    """What became of each item, in the order of the request."""

    outcomes: list[ItemOutcome] = Field(
        description="`unknown`: PATCH changes only items of the run and items that were sent"
    )
    notes: list[str] = Field([], description="columns that do not reach the vectors of the items")
