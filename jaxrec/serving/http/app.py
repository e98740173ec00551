"""The application of the HTTP service: receives events, answers with recommendations."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Security
from fastapi.security import APIKeyHeader

from jaxrec.ranking.context import Step
from jaxrec.ranking.steps import Feedback
from jaxrec.serving.http.catalog_routes import catalog_routes
from jaxrec.serving.http.forecast_routes import forecast_routes
from jaxrec.serving.http.item_routes import FULL, item_routes
from jaxrec.serving.http.middleware import Admission, BodyLimit, RequestTimer, SafeHeaders
from jaxrec.serving.http.openapi import describe_model
from jaxrec.serving.http.problems import Defects, add_problem_handlers
from jaxrec.serving.http.routes import PROBLEM, PROBLEMS, operation_routes, user_routes
from jaxrec.serving.http.service import LiveService
from jaxrec.serving.http.upkeep import background_tasks
from jaxrec.serving.options import LiveOptions


def create_app(
    run: Path,
    options: LiveOptions | None = None,
    strategy: Sequence[Step] = (Feedback(),),
    *,
    load_first: bool = False,
) -> FastAPI:
    """Make the ASGI application that serves a run.

    Args:
        load_first: load the model before the first connection is accepted; by default requests are
            answered with 503 meanwhile.
    """
    options = options or LiveOptions()
    service = LiveService(run, options, strategy)

    app = FastAPI(
        title="jaxrec",
        description="Recommendations that follow a user's interest, event by event.",
        version=version("jaxrec"),
        lifespan=lambda app: lifespan(service, load_first),
        docs_url=None,  # its page loads scripts of a third party
        redoc_url=None,
    )
    app.state.service = service
    # the last one added is the first that a request passes
    app.add_middleware(BodyLimit)
    app.add_middleware(Admission, options=options)
    app.add_middleware(Defects)
    app.add_middleware(SafeHeaders)
    app.add_middleware(RequestTimer, seconds=service.metrics.request_seconds)
    add_problem_handlers(app)
    key = APIKeyHeader(name="X-API-Key", auto_error=False)  # documents what Admission checks
    keys = [Security(key)] if options.has_keys else []
    app.include_router(user_routes, dependencies=keys, responses=PROBLEMS)
    app.include_router(forecast_routes, dependencies=keys, responses=PROBLEMS)
    app.include_router(item_routes, dependencies=keys, responses={**PROBLEMS, FULL: PROBLEM})
    app.include_router(catalog_routes, dependencies=keys, responses=PROBLEMS)
    app.include_router(operation_routes)
    describe_model(app, service)
    return app


@asynccontextmanager
async def lifespan(service: LiveService, load_first: bool) -> AsyncIterator[None]:
    """Run what goes on beside the requests, from before the first one until after the last."""
    tasks = background_tasks(service)
    if service.options.consume:
        from jaxrec.serving.http.consumer import StreamConsumer  # needs the package redis

        consumer = StreamConsumer(service, service.options.consume)
        tasks.append(asyncio.create_task(consumer.run()))
    if load_first:
        await service.tried.wait()
    yield
    for task in tasks:
        task.cancel()
    service.close()
