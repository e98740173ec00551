"""Requests and responses of the HTTP service; FastAPI makes the OpenAPI document of them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Discriminator, Field, Tag

from jaxrec.data.graph import ITEM
from jaxrec.inference.explanation import Explanation
from jaxrec.serving.forgetting import PlaceReport
from jaxrec.serving.ids import PATTERN, check_id
from jaxrec.serving.live.recommendation_builder import LISTS
from jaxrec.serving.live.recorder import Outcome

MAX_EVENTS = 1000  # in one request
MAX_SECONDS = 2**33  # in the year 2242
EventOutcome = Outcome | Literal["failed"]


def seconds(value: Any) -> int:
    """Seconds since 1970 of a whole number, or of a date and time with its offset (ISO 8601).

    Raises:
        ValueError: anything else; the message says what to send.
    """
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = datetime.min
        if moment.tzinfo is not None:
            return int(moment.timestamp())
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("send whole seconds since 1970, or ISO 8601 with an offset")


Text = Annotated[
    str,
    Field(min_length=1, max_length=256, json_schema_extra={"pattern": PATTERN}),
    AfterValidator(check_id),
]
Moment = Annotated[int, Field(ge=0, lt=MAX_SECONDS)]
Seconds = Annotated[Moment, BeforeValidator(seconds, json_schema_input_type=Moment | datetime)]


class EventRequest(BaseModel):
    """An event of a user."""

    user_id: Text = Field(examples=["A1YJEY40YUW4SE"])
    item_id: Text = Field(examples=["B00IJ9"])
    event: Text | None = Field(
        None, description="event type; optional if the model knows only one", examples=["view"]
    )
    timestamp: Seconds | None = Field(
        None, description="seconds since 1970, or ISO 8601; by default now"
    )
    event_id: Text | None = Field(
        None, description="unique id; an event sent again with the same id counts once"
    )


Events = Annotated[
    Annotated[EventRequest, Tag("event")]
    | Annotated[list[EventRequest], Field(max_length=MAX_EVENTS), Tag("events")],
    Discriminator(lambda body: "events" if isinstance(body, list) else "event"),
]


class ListQuery(BaseModel):
    """What to recommend."""

    k: Annotated[int, Field(ge=1, le=LISTS[-1], description="length of the list")] = 10
    target: Annotated[str, Field(max_length=100, description="`item`, `brand` ...")] = ITEM
    where: Annotated[
        str, Field(max_length=4000, description="condition on the items", examples=["price < 50"])
    ] = ""
    context: Annotated[
        str, Field(max_length=100, description="event type to predict, such as `buy`")
    ] = ""
    explain: Annotated[
        Literal["full"] | None,
        Field(
            description="`full` says why the list holds each item, for k of at most 10; other "
            "lists wait meanwhile, so it needs `--explain` where there is a key"
        ),
    ] = None


class RecordedResponse(BaseModel):
    """The outcome of each event, in the order of the request."""

    outcomes: list[EventOutcome]


class ItemDetails(BaseModel):
    """What a shop shows of an item, as far as the items table has columns for it."""

    title: str | None = None
    price: float | None = None
    brand: str | None = None
    category: str | None = Field(None, description="the last one of a path, or all genres")
    image_url: str | None = None


class ItemResponse(ItemDetails):
    """An item of the catalogue."""

    id: str


class ItemsResponse(BaseModel):
    """Items, the best match or the most popular first."""

    items: list[ItemResponse]


class ExampleUser(BaseModel):
    """A user of the store."""

    user_id: str
    events: int = Field(description="number of the user's events")


class UsersResponse(BaseModel):
    """Some users of the store; none unless the service may list them."""

    users: list[ExampleUser]


class RecommendedItemResponse(ItemDetails):
    """One entry of a list; only items have details."""

    rank: int
    id: str
    score: float
    because: str | None = Field(
        None, description="the item of the user's history that speaks most for it, by a cheap score"
    )
    rules: list[str] = Field(description="strategy steps that moved it")
    propensity: float = Field(
        description="probability of this item at this rank, given the items above it"
    )
    explanation: Explanation | None = Field(None, description="with `explain=full`")


class RecommendationsResponse(BaseModel):
    """A list of recommendations for a user."""

    user_id: str
    target: str
    items: list[RecommendedItemResponse]
    events: int = Field(description="number of the user's events that the model has read")
    approximate: bool = Field(
        description="true if older events are missing after a change of the model"
    )
    model: str = Field(description="training step of the model")


class Interest(BaseModel):
    """A user's interest in an item, a brand, a category or another node of the graph."""

    type: str
    rank: int
    id: str
    title: str | None = None
    weight: float
    change: float = Field(description="change of the weight over the last events")


class ProfileEvent(BaseModel):
    """A kept event of the user."""

    time: int = Field(description="seconds since 1970")
    item_id: str
    event_type: str
    title: str | None = None


class InterestMovement(BaseModel):
    """Weights of the strongest interests after each of the last events."""

    type: str
    names: list[str]
    weights: list[list[float]] = Field(description="one row per event, one column per name")


class ProfileResponse(BaseModel):
    """A user's interests and kept events, newest last."""

    user_id: str
    interests: list[Interest]
    movement: InterestMovement
    events: list[ProfileEvent]
    truncated: int = Field(description="number of older events, which are no longer kept")


class ModelResponse(BaseModel):
    """The served model and what it accepts."""

    step: int
    items: int
    event_types: list[str] = Field(description="event types that the model reads")
    feedback: list[str] = Field(description="event types that only the strategy reads")
    strategy: list[str] = Field(description="names of the strategy's steps, in order")
    targets: list[str] = Field(description="node types that can be recommended")
    words: bool = Field(description="whether lists can be steered by words (`POST /query`)")
    forecast: int = Field(description="most events of a forecast; 0: the run has no decoder")
    explain: bool = Field(description="whether lists can be explained (`explain=full`)")
    popularity: bool = Field(
        description="whether items have training events; if not, `GET /items` without `q` has the "
        "order of the catalogue"
    )


class SearchRequest(BaseModel):
    """A search in words."""

    user_id: Text
    words: Annotated[str, Field(min_length=1, max_length=500)] = Field(examples=["red lipstick"])
    k: Annotated[int, Field(ge=1, le=LISTS[-1])] = 10
    strength: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="share of the words in the scores: 0 is interest alone, 1 words alone"
    )
    where: Annotated[str, Field(max_length=4000)] = Field("", description="condition on the items")


class DeletionReport(BaseModel):
    """What was removed from each place when a user was deleted."""

    users: int = Field(description="number of users to delete: 1")
    complete: bool = Field(description="false if a place may still hold the user")
    places: list[PlaceReport]


class Problem(BaseModel):
    """Why a request failed (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = []


class DeletionProblem(Problem):
    """Why a user may not be deleted from every place."""

    report: DeletionReport | None = Field(None, description="with `report=true`")
