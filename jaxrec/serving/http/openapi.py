"""The OpenAPI document of a running service, which names what the served model accepts."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from fastapi import FastAPI

from jaxrec.data.graph import ITEM
from jaxrec.serving.http.service import LiveService
from jaxrec.serving.live.engine import LiveEngine

Document = dict[str, Any]


def describe_model(app: FastAPI, service: LiveService) -> None:
    """Add event types and targets to the document of an application once its model is loaded."""
    general = app.openapi

    def document() -> Document:
        return general() if service.engine is None else with_names(general(), service.engine)

    app.openapi = document  # type: ignore[method-assign]


def with_names(document: Document, engine: LiveEngine) -> Document:
    """A document whose event types, targets and lengths of lists are those of an engine."""
    document = deepcopy(document)
    schemas, paths = document["components"]["schemas"], document["paths"]
    known = list(engine.model.artifacts.event_type_names)
    event = schemas["EventRequest"]["properties"]["event"]
    _name(event, [*engine.builder.event_types, *[None] * (len(known) == 1)])
    if len(known) > 1:
        schemas["EventRequest"]["required"].append("event")
    listed = paths["/users/{user_id}/recommendations"]["get"]["parameters"]
    query = {parameter["name"]: parameter["schema"] for parameter in listed}
    _name(query["target"], [ITEM, *engine.model.profiled_types])
    _name(query["context"], ["", *known])
    for length in (query["k"], schemas["SearchRequest"]["properties"]["k"]):
        length["maximum"] = min(length["maximum"], engine.num_items)
    return document


def _name(schema: dict[str, Any], values: Sequence[str | None]) -> None:
    """Allow these values alone."""
    for general in ("anyOf", "maxLength", "type", "examples"):
        schema.pop(general, None)
    schema["enum"] = list(values)
