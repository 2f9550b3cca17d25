"""The app: routes, guards and the service behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from query.api import errors
from query.api.guards import Guards
from query.api.routes import health, index, jobs, models, outputs, page, probes, recommend, search
from query.api.service import LoadEncoder, Service
from query.api.settings import Settings
from query.api.watched import model_folders

_DESCRIPTION = """
Find pretrained models by what they do: search the outputs of indexed models by concept or by example, and rank models
for a few images without labels. Answers are those of the command line. Errors are problem+json (RFC 9457) with a
stable `type`.

A service with API keys wants one with every request but those to `/healthz` and `/readyz`, and also with those for this
document: `Authorization: Bearer KEY`. One without keys does not look at it.
"""

_TAGS = [
    {"name": "search", "description": "Outputs and models that recognise concepts."},
    {"name": "recommend", "description": "Models for images without labels."},
    {"name": "jobs", "description": "What takes longer than a request."},
    {"name": "models", "description": "What is in the index."},
    {"name": "index", "description": "The index itself and its probes."},
    {"name": "service", "description": "The state of the service."},
]

_BEARER = {"type": "http", "scheme": "bearer", "description": "An API key, where the service was started with keys."}


class Api(FastAPI):
    """A FastAPI app whose guards stand before everything else, its own error handling included."""

    service: Service

    def build_middleware_stack(self) -> ASGIApp:
        """The guards around all there is."""
        return Guards(super().build_middleware_stack(), self.service.settings, self.service.metrics)

    def openapi(self) -> dict[str, Any]:
        """The document, which says of keys that they may be needed: it is the same for every service."""
        described = super().openapi()
        described.setdefault("components", {})["securitySchemes"] = {"bearer": _BEARER}
        described["security"] = [{}, {"bearer": []}]
        return described


def create_app(settings: Settings, load_encoder: LoadEncoder | None = None) -> FastAPI:
    """Makes the app over an index, which is opened here; threads and tasks start with the app's lifespan.

    Args:
        settings: How it runs.
        load_encoder: Another way to come by the encoder; by default the index's is loaded when it is needed.

    Raises:
        IndexUnusableError: There is no index, or it cannot be opened. An empty one can: the service is ready when it
            has its first generation.
        InputError: The file of keys, the vocabulary, a folder of models or the device cannot be used.
    """
    settings.check_files()
    settings.check_device()
    model_folders(settings.models)
    service = Service(settings, load_encoder)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = Api(
        title="hubhound",
        summary="Find pretrained models by what they do.",
        description=_DESCRIPTION,
        version=version("hubhound"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        openapi_tags=_TAGS,
        generate_unique_id_function=_operation_id,
        lifespan=lifespan,
    )
    app.service = app.state.service = service
    errors.install(app)
    parts = (search, recommend, jobs, models, outputs, probes, index, health, page)
    for part in parts:
        app.include_router(part.router)
    app.state.routes = [route for part in parts for route in part.router.routes]  # FastAPI's own list is of routers
    app.middleware_stack = app.build_middleware_stack()  # now: what is wrong with the settings is told at the start
    return app


def _operation_id(route: APIRoute) -> str:
    """The function's name: what generated clients call their methods."""
    return route.name
