"""What the HTTP service takes and gives; its OpenAPI document is made of these."""

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, Field

from jaxrec.serving.live.recommendation_builder import LISTS
from jaxrec.serving.live.recorder import Outcome

Text = Annotated[str, Field(min_length=1, max_length=256)]


class EventIn(BaseModel):
    """Something that a document did."""

    user_id: Text = Field(examples=["A1YJEY40YUW4SE"])
    item_id: Text = Field(examples=["B00IJ9"])
    event: Text | None = Field(
        None, description="its event_type; may be left out if there is but one"
    )
    timestamp: Annotated[int, Field(ge=0, lt=2**33)] | AwareDatetime | None = Field(
        None, description="seconds since 1970 or ISO 8601; now, if left out"
    )
    event_id: Text | None = Field(None, description="an event sent twice counts once by it")


class Recorded(BaseModel):
    """What became of every event, in their order."""

    outcomes: list[Outcome]


class Recommended(BaseModel):
    """A place of a list."""

    rank: int
    id: str
    score: float
    title: str | None = None
    because: str | None = Field(None, description="the user's own item that is most like it")
    rules: list[str] = Field(description="steps of the strategy that moved it")
    propensity: float = Field(description="chance that it was to stand here, given those before")


class Recommendations(BaseModel):
    """A list, and what it rests on."""

    user_id: str
    target: str
    items: list[Recommended]
    events: int = Field(description="events of the user that the model has read")
    approximate: bool = Field(description="events from before a change of the model are missing")
    model: str = Field(description="step of the checkpoint")


class Interest(BaseModel):
    """A user's interest in one node of the graph."""

    type: str
    rank: int
    id: str
    title: str | None = None
    weight: float
    change: float = Field(description="over the last events")


class Seen(BaseModel):
    """An event that is kept."""

    time: int
    item_id: str
    event_type: str
    title: str | None = None


class Movement(BaseModel):
    """The weights of the strongest interests after each of the last events."""

    type: str
    names: list[str]
    weights: list[list[float]]


class Profile(BaseModel):
    """What a user is interested in, and the events that are kept, newest last."""

    user_id: str
    interests: list[Interest]
    movement: Movement
    events: list[Seen]
    truncated: int = Field(description="events that are no longer kept")


class ServedModel(BaseModel):
    """What a client may ask of the model."""

    step: int
    items: int
    event_types: list[str] = Field(description="of event, that the model reads")
    feedback: list[str] = Field(description="other event types, that the strategy reads")
    strategy: list[str] = Field(description="steps, in their order")
    targets: list[str] = Field(description="types of node that can be recommended")


class WordQuery(BaseModel):
    """What a user looks for."""

    user_id: Text
    words: Annotated[str, Field(min_length=1, max_length=500)] = Field(examples=["red lipstick"])
    k: Annotated[int, Field(ge=1, le=LISTS[-1])] = 10
    strength: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="of the words in the scores; 0: interest alone, 1: the words alone"
    )
    where: Annotated[str, Field(max_length=4000)] = ""


class Problem(BaseModel):
    """Why a request was not met (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = []
