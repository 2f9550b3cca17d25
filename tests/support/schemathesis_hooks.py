"""Makes the questions of schemathesis sensible where the schema cannot: most that fit it would contradict themselves.

Three of four cases that are to fit the schema are changed; what is not to fit stays as it is.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import schemathesis
from schemathesis import GenerationMode

MODELS = ("org/one", "org/two", "org/three")
SIDE = 16


def photo() -> str:
    """An image for everything that wants one, a BMP whose bytes are all ASCII: only text can be held to a schema.

    It is always the same, so that what models say of it is soon remembered.
    """
    pixels = bytes(7 * i % 128 for i in range(3 * SIDE * SIDE))
    head = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54)
    return (head + struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, len(pixels), 0, 0, 0, 0) + pixels).decode(
        "ascii"
    )


def sensible_search(body: dict[str, Any], with_images: bool) -> dict[str, Any]:
    """A search that contradicts itself nowhere."""
    asked = dict(body)
    concepts = [text for text in asked.get("concepts", []) if text.strip()][:3]
    asked["k"] = min(asked.get("k", 3), 20)
    if asked.get("like"):
        asked["like"] = "org/one" if asked.get("level") == "model" else "org/one#1"
        drop = {"concepts", "evidence", *_RERANK}
    else:
        asked["concepts"] = (concepts or ([] if with_images else ["cat"]))[: 1 if with_images else 3]
        drop = {"like"} if with_images else {"like", *_RERANK}
    if asked.get("level") == "model":
        drop |= {"evidence"}
        asked["concepts"] = list({text.casefold(): text for text in asked.get("concepts", [])}.values())
    else:
        drop |= {"require", "ceiling"}
    if asked.get("evidence") == "both":
        drop |= {"method"}
    if set(_RERANK) & set(asked):
        asked["rerank"] = "dcd"
    return {name: value for name, value in asked.items() if name not in drop or (name == "concepts" and value == [])}


_RERANK = ("rerank", "rerank_weight", "rerank_top")


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Changes a case in place."""
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    draw = zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode())
    if draw % 4 == 0:
        return
    change_place(case, draw)
    if case.method == "POST" and isinstance(case.body, dict):
        change_body(case)


def change_place(case: Any, draw: int) -> None:
    """Asks about what is in the index."""
    query = case.query or {}
    if "name" in case.path_parameters:
        case.path_parameters["name"] = MODELS[draw % len(MODELS)]
    if "outputs" in query:
        query["outputs"] = "0,1"
    if case.path.endswith("/usage"):
        case.query = {**query, "output": draw % 5}
    if case.path == "/v1/models":
        query.pop("where", None)


def change_body(case: Any) -> None:
    """Asks what makes sense."""
    multipart = case.media_type == "multipart/form-data"
    request = case.body.get("request", {}) if multipart else case.body
    if not isinstance(request, dict):
        return
    if case.path == "/v1/search":
        request = sensible_search(request, multipart and bool(case.body.get("images")))
    elif case.path == "/v1/recommend":
        request = {name: value for name, value in request.items() if name not in {"candidates", "max_parameters"}}
        request["k"] = min(request.get("k", 3), 20)
    elif case.path == "/v1/outputs":
        request = {**request, "outputs": [f"{MODELS[i % 3]}#{i % 4}" for i, _ in enumerate(request["outputs"][:20])]}
    if multipart:
        case.body = {**case.body, "request": request}
        if case.body.get("images") or case.path == "/v1/recommend":
            case.body["images"] = [photo()]
    else:
        case.body = request
