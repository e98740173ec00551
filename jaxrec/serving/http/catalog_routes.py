"""The routes that show the items of the catalogue and example users."""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request

from jaxrec.serving.http.schemas import ExampleUser, ItemResponse, ItemsResponse, UsersResponse
from jaxrec.serving.http.service import service_of
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.base import Store

MAX_ITEMS = 50  # in one answer
EXAMPLES, CANDIDATES = 20, 50  # users in one answer, of these with the newest documents

LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)

catalog_routes = APIRouter()  # behind the key to read and the rate limit


# not async: a search of a million titles takes its time in a thread of its own
@catalog_routes.get("/items", tags=["items"])
def items(
    request: Request,
    q: Annotated[str, Query(max_length=200, description="words or parts of words")] = "",
    k: Annotated[int, Query(ge=1, le=MAX_ITEMS, description="most items to return")] = 10,
) -> ItemsResponse:
    """Search the titles and ids of all items; without `q`, return the most popular items.

    An item matches if it holds the first eight words, in upper or lower case, with or without
    accents. Items in which words begin like this come first, then the more popular ones.
    """
    shop = service_of(request).ready_engine.shop_items
    numbers = shop.search(q, k) if q.strip() else shop.popular(k)
    return ItemsResponse(items=[ItemResponse(**row) for row in shop.rows(numbers)])


@catalog_routes.get("/users", tags=["users"])
async def users(request: Request) -> UsersResponse:
    """List up to 20 users of the store, for a demonstration; those with most events first.

    The list is empty unless the service runs with `--example-users`, or without a key on this
    machine only and is asked by its local name. It is empty if the run has a key of user ids.
    """
    service = service_of(request)
    listed = may_list_users(service.options, request.headers.get("host", ""))
    if not listed or service.id_key:  # a pseudonym is not what requests name a user by
        return UsersResponse(users=[])
    return UsersResponse(users=await service.read(example_users, service.store))


def may_list_users(options: LiveOptions, host: str) -> bool:
    """Whether a request with this `Host` header may see ids of users.

    Without a key and without `--open` the service listens on this machine only. The header matters
    because a foreign web page can make its own name mean this machine.
    """
    return options.example_users or (options.is_private and bool(LOCAL_HOST.fullmatch(host)))


def example_users(store: Store) -> list[ExampleUser]:
    """Users of a store who have events; those with most events first."""
    documents = store.load(store.newest(CANDIDATES)).documents.values()
    counts = {d.user_id: d.truncated + len(d.events) + len(d.feedback) for d in documents}
    users = sorted(filter(counts.get, counts), key=counts.__getitem__, reverse=True)
    return [ExampleUser(user_id=user, events=counts[user]) for user in users[:EXAMPLES]]
