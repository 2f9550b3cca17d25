"""The page at ``/`` and its files below ``/web/``: only those of the package, under a content policy of their own."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from query.api.errors import ApiError, ProblemKind

WEB = Path(__file__).parent.parent / "web"
"""Where the page's files are."""

CONTENT_POLICY = "; ".join((
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob:",  # blob: for uploads shown back, and for thumbnails that need a key
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
))  # fmt: skip
"""What the page may load and run: what this service serves, and nothing inline."""

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""By suffix; files of other kinds are not served."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}\.(html|css|js|svg)")

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def page(request: Request) -> Response:
    """The page."""
    return _file("index.html", request)


@router.api_route("/web/{name:path}", methods=["GET", "HEAD"])
def web_file(name: str, request: Request) -> Response:
    """A file of the page.

    Raises:
        ApiError: The page has no such file.
    """
    return _file(name, request)


@router.api_route("/favicon.ico", methods=["GET", "HEAD"])
def favicon(request: Request) -> Response:
    """The icon, for browsers that ask before they have read the page."""
    return _file("icon.svg", request)


def _file(name: str, request: Request) -> Response:
    """A file by its bare name: a name that fits has no slash and one dot, so it cannot lead out of the folder.

    Browsers ask every time whether theirs is still right (``no-cache``): an old script with a new page would break it.
    """
    suffix = _NAME.fullmatch(name)
    try:
        content = (WEB / name).read_bytes() if suffix else None
    except (FileNotFoundError, IsADirectoryError):
        content = None
    if suffix is None or content is None:
        raise ApiError(ProblemKind.NOT_FOUND, "the page has no such file: open / for the page")
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": CONTENT_POLICY}
    if _has(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=MEDIA_TYPES[suffix[1]], headers=headers)


def _has(if_none_match: str, tag: str) -> bool:
    """Whether one of the tags that a browser has is this one; ``*`` stands for any."""
    tags = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return "*" in tags or tag in tags
