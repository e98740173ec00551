"""The route of a user's forecast."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel, Field

from jaxrec.serving.http.routes import UserId
from jaxrec.serving.http.service import service_of
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.forecast import forecast

forecast_routes = APIRouter()  # behind the key to read and the rate limit


class ForecastItem(BaseModel):
    """An item of a step, with its share of interest: the mean and the range of the roll-outs."""

    rank: int
    id: str
    title: str | None = None
    weight: float
    low: float = Field(description="10 % of the roll-outs are below")
    high: float = Field(description="10 % of the roll-outs are above")


class ForecastStep(BaseModel):
    """The likeliest items of one of the next events."""

    step: int = Field(description="1 is the next event, as the model predicts it now")
    items: list[ForecastItem]


class ForecastMovement(BaseModel):
    """How the weights of the interests in a profile's `movement` go on; a row for every step."""

    type: str
    names: list[str]
    weights: list[list[float]]
    low: list[list[float]]
    high: list[list[float]]


class ForecastResponse(BaseModel):
    """What a user is likely to be interested in at each of the next events."""

    user_id: str
    steps: list[ForecastStep]
    movement: ForecastMovement = Field(
        description="the first row is the interest now, after the last event"
    )


@forecast_routes.get("/users/{user_id:path}/forecast", tags=["users"])
async def user_forecast(
    request: Request,
    user_id: UserId,
    steps: Annotated[
        int | None,
        Query(
            ge=1,
            le=1000,
            description="number of next events, at most `forecast` of `GET /model`; by default 5, "
            "or that number if it is smaller",
        ),
    ] = None,
    k: Annotated[int, Query(ge=1, le=100, description="items of a step")] = 10,
) -> ForecastResponse:
    """Forecast a user's interest at each of the next events; 404 if the run has no decoder."""
    service = service_of(request)
    engine = service.ready_engine
    if engine.model.decoder is None:
        raise HTTPException(404, "the run has no decoder for a forecast: run `jaxrec add-forecast`")
    made = await service.read(forecast_response, engine, service.stored_id(user_id), steps, k)
    return made.model_copy(update={"user_id": user_id})


def forecast_response(
    engine: LiveEngine, user_id: str, steps: int | None, k: int
) -> ForecastResponse:
    """Compute a user's forecast and convert it to a response."""
    made = forecast(engine, engine.document(user_id), steps, k)
    items: dict[int, list[ForecastItem]] = {n + 1: [] for n in range(len(made.weights.mean))}
    for row in made.items.rename({"item_id": "id"}).to_dicts():
        items[row["step"]].append(ForecastItem(**row))
    return ForecastResponse(
        user_id=user_id,
        steps=[ForecastStep(step=step, items=listed) for step, listed in items.items()],
        movement=ForecastMovement(
            type=made.type,
            names=made.names,
            weights=made.weights.mean.tolist(),
            low=made.weights.low.tolist(),
            high=made.weights.high.tolist(),
        ),
    )
