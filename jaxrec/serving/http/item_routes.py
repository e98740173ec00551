"""The routes by which a shop changes its items."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi import Path as PathParameter

from jaxrec.errors import LimitError
from jaxrec.serving.http.item_schemas import Item, ItemColumns, Items, ItemsRecorded
from jaxrec.serving.http.schemas import Text
from jaxrec.serving.http.service import service_of
from jaxrec.serving.live.item_recorder import ItemChange

ItemId = Annotated[Text, PathParameter(examples=["B00IJ9"])]
FULL = 507

item_routes = APIRouter(tags=["items"])  # behind the API key and the rate limit


@item_routes.put("/items")
async def put(request: Request, items: Items) -> ItemsRecorded:
    """Add or replace one item, or up to 1,000; columns that are not sent become null.

    Items are durable when this answers, and are ranked by every worker within about a second. A new
    item is encoded by its text and its neighbours in the graph, without training. Sending the same
    item again changes nothing.
    """
    return await _record(request, items, "put")


@item_routes.patch("/items")
async def patch_many(request: Request, items: Items) -> ItemsRecorded:
    """Change columns of one item, or of up to 1,000, such as prices; null empties a column."""
    return await _record(request, items, "patch")


@item_routes.patch("/items/{item_id:path}")
async def patch(request: Request, item_id: ItemId, columns: ItemColumns) -> ItemsRecorded:
    """Change columns of an item of the run, or of one that was sent; null empties a column."""
    recorded = await _change(request, ItemChange("patch", {item_id: columns.sent()}))
    if recorded.outcomes == ["unknown"]:
        raise _unknown(item_id)
    return recorded


@item_routes.get("/items/{item_id:path}")
async def get(request: Request, item_id: ItemId) -> dict[str, Any]:
    """Return the columns of an item, as far as they are not null."""
    columns = await asyncio.to_thread(service_of(request).item_recorder.get, item_id)
    if columns is None:
        raise _unknown(item_id)
    return columns


@item_routes.delete("/items/{item_id:path}", status_code=204)
async def delete(request: Request, item_id: ItemId) -> None:
    """Remove an item from all lists and searches; histories that hold it stay as they are."""
    change = ItemChange("remove", {item_id: {}})
    if await service_of(request).change_items(change) == ["unknown"]:
        raise _unknown(item_id)


async def _record(
    request: Request, items: Item | list[Item], operation: Literal["put", "patch"]
) -> ItemsRecorded:
    listed = items if isinstance(items, list) else [items]
    columns = {item.item_id: item.sent() for item in listed}
    if len(columns) < len(listed):
        raise HTTPException(422, "send each item_id once in a request")
    return await _change(request, ItemChange(operation, columns))


async def _change(request: Request, change: ItemChange) -> ItemsRecorded:
    service = service_of(request)
    try:
        outcomes = await service.change_items(change)
    except LimitError as error:
        raise HTTPException(FULL, str(error)) from None
    return ItemsRecorded(outcomes=outcomes, notes=service.item_recorder.notes(change.items))


def _unknown(item_id: str) -> HTTPException:
    return HTTPException(404, f"there is no item {item_id!r}")
