"""The page of the HTTP API, from the OpenAPI document of the service."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrec.serving.http.app import create_app
from jaxrec.serving.options import LiveOptions

METHODS = ("get", "put", "post", "patch", "delete")
INTRODUCTION = """# HTTP API

`jaxrec serve RUN` serves a run. `/openapi.json` is the OpenAPI document; this page is generated
from it.

* **Key**: if `JAXREC_API_KEY` (or `--api-key`) is set, a request must send it as `X-API-Key` or as
  `Authorization: Bearer KEY`. Separate keys allow reading, writing or deleting alone
  (`--read-key`, `--write-key`, `--delete-key`). The page, health checks and metrics need no key.
* **Errors** are `application/problem+json` (RFC 9457): `type`, `title`, `status`, `detail`, and
  the first ten `errors` of a request with wrong fields.
* **Status 503** means that the store failed, that the model is still loading, that too many
  requests wait, or that a list took longer than `--list-timeout`. Send the request again after
  `Retry-After` seconds. Events with an `event_id` count once, however often you send them.
* **Size**: a body has at most 1 MiB and 1,000 events or items, and must arrive within 10 seconds.
* **Items**: if you send an item again without a change, nothing changes. Status 507 means that the
  store holds as many changed items as `--keep-items` allows.
* **Ids** have 1 to 256 characters without control characters and line breaks.
* **Times** are whole seconds since 1970, or ISO 8601 with an offset; at most a day in the future.
"""


def page() -> str:
    """The page as Markdown."""
    document = openapi()
    schemas = document["components"]["schemas"]
    lines = [INTRODUCTION]
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                lines += _operation(method, path, operations[method])
    lines += ["## Data types", ""]
    for name in sorted(schemas):
        if not name.startswith("HTTPValidation") and name != "ValidationError":
            lines += _schema(name, schemas[name])
    return "\n".join(lines)


def openapi() -> dict[str, Any]:
    """The OpenAPI document of the service, made without a trained run."""
    return create_app(Path("run"), LiveOptions(store=":memory:")).openapi()


def _operation(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    lines = [f"## {method.upper()} {path}", "", operation["description"], ""]
    if parameters := operation.get("parameters", []):
        lines += _table(
            ("parameter", "in", "type", "default", "meaning"),
            [
                (
                    f"`{p['name']}`",
                    p["in"],
                    _type(p["schema"]),
                    _default(p["schema"], p.get("required", False)),
                    p["schema"].get("description", p.get("description", "")),
                )
                for p in parameters
                if p["in"] != "header"
            ],
        )
    if body := operation.get("requestBody"):
        lines += [f"Body: {_type(body['content']['application/json']['schema'])}", ""]
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            content = response.get("content", {}).get("application/json", {})
            kind = _type(content["schema"]) if content.get("schema") else "no JSON"
            lines += [f"Response {status}: {kind}", ""]
    return lines


def _schema(name: str, schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", [])
    rows = [
        (
            f"`{field}`",
            _type(about),
            _default(about, field in required),
            about.get("description", ""),
        )
        for field, about in schema.get("properties", {}).items()
    ]
    description = " ".join(schema.get("description", "").split())
    return [
        f"### {name}",
        "",
        description,
        "",
        *_table(("field", "type", "default", "meaning"), rows),
    ]


def _type(schema: dict[str, Any]) -> str:
    """A short name of a JSON schema."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if alternatives := schema.get("anyOf", schema.get("oneOf")):
        kinds = dict.fromkeys(_type(part) for part in alternatives if part.get("type") != "null")
        return " or ".join(kinds)
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") in ("integer", "number") and {"minimum", "maximum"} <= set(schema):
        return f"{schema['type']}, {schema['minimum']:g} to {schema['maximum']:g}"
    return schema.get("format", schema.get("type", "any"))


def _default(schema: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = schema.get("default")
    return "" if default in (None, "") else f"`{default}`"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(' '.join(cell.split()) for cell in row)} |" for row in rows),
        "",
    ]
