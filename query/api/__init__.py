"""The HTTP service."""

from query.api.app import create_app
from query.api.settings import Settings

__all__ = ["Settings", "create_app"]
