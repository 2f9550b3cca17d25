"""Malformed requests for the HTTP service, made by a random generator: the material of the fuzzer."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SEARCH: dict[str, Any] = {"concepts": ["cat", "dog"], "k": 3, "level": "output", "where": ["library=timm"]}
OUTPUTS: dict[str, Any] = {"outputs": ["org/animals#0", "org/things#1"], "names": 2}
RECOMMEND: dict[str, Any] = {"candidates": ["open_clip:a/b"], "k": 3, "eta": 1.0, "explain": True}
POSTS = (("/v1/search", SEARCH), ("/v1/outputs", OUTPUTS), ("/v1/recommend", RECOMMEND))
GETS = (
    "/",
    "/v1/index",
    "/v1/models",
    "/v1/models/org/animals",
    "/v1/models/org/animals/usage",
    "/v1/probes/3/image",
    "/v1/jobs/abc",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/web/app.js",
)

STRANGE_TEXTS: tuple[str, ...] = (
    *("", " ", "\0", "a\0b", "\ud800", "\udfff\ud800", "\u202e\u2066", "\N{ZERO WIDTH SPACE}", "é" * 600, "x" * 1001),
    *("../../etc/passwd", "@/etc/passwd", "@", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/", "<script>"),
    *("org/animals#0", "org/animals#-1", "org/animals#", "#0", "org/animals#99999999999999999999", "org/animals#²"),
    *("library=timm", "library=", "=timm", "max-parameters=1e999", "max-parameters=NaN", "min-downloads=-1", "label=x"),
    *("{}", "{0.__class__}", "%s%n", "${jndi:x}", "' OR 1=1 --", "cat\r\nX-Evil: 1", "model", "none", "null", "١٢"),
)
STRANGE_NUMBERS: tuple[str, ...] = (
    *("-1", "0", "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e-999", "1.5", "-0", "00", "0x10", "1_000"),
    *("2147483648", "9223372036854775808", "1" + "0" * 400, "9" * 5000, "1e5", "1.0"),
)
"""As they stand in JSON; some are no JSON."""

STRANGE_HEADERS: tuple[str, ...] = (
    *("Range: bytes=0-", "Range: bytes=99999999999-1", "Range: bytes=" + "0-1," * 500, "Range: lines=1"),
    *(
        'If-None-Match: "x"',
        "If-None-Match: *",
        "If-None-Match: " + 'W/"a",' * 800,
        'If-None-Match: "\\"',
        "If-Match: *",
    ),
    *("If-Modified-Since: yesterday", "If-Modified-Since: Mon, 99 Foo 2099 00:00:00 GMT", "If-Range: 7"),
    *(
        "Accept: application/xml",
        "Accept: ;;;",
        "Accept: */*;q=nan",
        "Accept-Encoding: gzip;q=9, br, \xff",
        "Accept-Charset: x",
    ),
    *("X-Request-ID: ../../x", "X-Request-ID: " + "a" * 3000, "X-Request-ID: abc-1", "X-Forwarded-For: 1.2.3.4, ::1"),
    *("Authorization: Bearer", "Authorization: Basic !!!", "Authorization: Bearer \xff\xfe", "Cookie: a=b; ;;=;"),
    *(
        "Origin: null",
        "Origin: http://evil.example",
        "Host: evil.example",
        "Host: 127.0.0.1:99999",
        "Host: [::1",
        "Host: ",
    ),
    *(
        "Connection: upgrade, close\r\nUpgrade: websocket",
        "Upgrade: h2c",
        "Expect: 100-continue",
        "Expect: nothing",
        "TE: trailers",
    ),
    *("Content-Type: \xff", "Content-Encoding: gzip", "Content-Encoding: zip, br", "X: "),
    *("X" * 4000 + ": 1", "X-Many: " + "y" * 30_000, "\r\n".join(f"X-{i}: {i}" for i in range(300))),
)
METHODS = (
    *("PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "CONNECT", "HEAD", "POST", "GET"),
    *("get", "PROPFIND", "M-SEARCH"),
)


def message(method: str, path: str, body: bytes | None = None, media: str = "", headers: Sequence[str] = ()) -> bytes:
    """A request that asks for the end of the connection; a header of the caller's stands in the place of ours."""
    own = ["Host: 127.0.0.1", "Connection: close"]
    if media:
        own.append(f"Content-Type: {media}")
    if body is not None:
        own.append(f"Content-Length: {len(body)}")
    given = {line.partition(":")[0].lower() for line in headers}
    lines = [line for line in own if line.partition(":")[0].lower() not in given]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, *headers])
    return head.encode("latin-1", "replace") + b"\r\n\r\n" + (body or b"")


# JSON


def strange_value(rng: random.Random, depth: int = 0) -> str:
    """A value as JSON text, or as something like it."""
    kind = rng.randrange(9)
    if kind < 3:
        return json.dumps(rng.choice(STRANGE_TEXTS))
    if kind < 5:
        return rng.choice(STRANGE_NUMBERS)
    if kind == 5:
        return rng.choice(("null", "true", "false", "[]", "{}", "[[]]", '{"a":1}', "[null]", '""'))
    if kind == 6 and depth < 3:
        return f"[{','.join(strange_value(rng, depth + 1) for _ in range(rng.randrange(5)))}]"
    if kind == 7:
        times = rng.choice((3, 50, 990, 5_000, 100_000))
        return rng.choice(("[" * times + "]" * times, '{"a":' * times + "1" + "}" * times, "[" * times))
    return json.dumps(["cat"] * rng.choice((1, 2, 101, 5_000)))


def strange_json(rng: random.Random, base: dict[str, Any]) -> bytes:
    """A body near a good one, or a good one."""
    if rng.random() < 0.15:
        return json.dumps(base).encode()
    parts = {name: json.dumps(value) for name, value in base.items()}
    for _ in range(rng.randrange(3)):
        parts[rng.choice((*parts, "like", "method", "evidence", "require", "ceiling", "rerank", "gamma", "more"))] = (
            strange_value(rng)
        )
    if rng.random() < 0.2:
        parts.pop(rng.choice(list(parts)))
    text = "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in parts.items()) + "}"
    kind = rng.randrange(12)
    if kind == 0:
        return strange_value(rng).encode("utf-8", "surrogatepass")
    if kind == 1:
        return text[:-1].encode() + b',"concepts":["twice"],"k":1}'
    if kind == 2:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
    if kind == 3:
        return text.encode().replace(b"cat", rng.choice((b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\x1b[31m")))
    return damaged(rng, text.encode()) if kind < 7 else text.encode()


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some of them changed, cut off, repeated or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not changed:
            break
        place = rng.randrange(len(changed))
        kind = rng.randrange(5)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place] = rng.choice((0, 255, 127, 34, 92, rng.randrange(256)))
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            changed[place:place] = rng.randbytes(rng.randrange(1, 9))
        else:
            piece = changed[place : place + rng.randrange(1, 64)]
            changed[place:place] = piece
    return bytes(changed)


def _json_case(rng: random.Random) -> bytes:
    path, base = rng.choice(POSTS)
    media = rng.choices(
        ("application/json", "text/plain", "application/xml", "", "application/json; charset=utf-16", "a/b;" * 99),
        (30, 1, 1, 1, 1, 1),
    )[0]
    return message(rng.choice(("POST",) * 20 + METHODS), path, strange_json(rng, base), media)


# Images and multipart


@cache
def good_image(kind: str) -> bytes:
    """A small image of a format."""
    pixels = Image.new("RGB", (24, 18), (200, 90, 40))
    pixels.paste((20, 60, 200), (4, 4, 12, 12))
    file = io.BytesIO()
    pixels.save(file, kind)
    return file.getvalue()


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


@cache
def bombs() -> tuple[bytes, ...]:
    """Small files that say that they are, or become, large ones; and files that are no raster images."""
    gif = bytearray(good_image("GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    bmp = bytearray(good_image("BMP"))
    bmp[18:26] = struct.pack("<ii", 100_000, -100_000)
    frames = io.BytesIO()
    Image.new("L", (8, 8)).save(
        frames, "GIF", save_all=True, append_images=[Image.new("L", (8, 8), i % 255) for i in range(400)]
    )
    whole = zlib.compress(bytes(9_001 * 9_000), 9)
    inner = zlib.compress(bytes(80_000_000), 9)
    return (
        _png(9_000, 9_000, (b"IDAT", whole)),
        _png(65_535, 65_535, (b"IDAT", whole)),
        _png(2**31 - 1, 2**31 - 1, (b"IDAT", b"x")),
        _png(0, 0, (b"IDAT", b"")),
        _png(1, 20_000_000, (b"IDAT", inner)),
        _png(8, 8, (b"zTXt", b"a\0\0" + inner), (b"IDAT", zlib.compress(bytes(72)))),
        _png(8, 8, (b"iCCP", b"a\0\0" + inner), (b"IDAT", zlib.compress(bytes(72)))),
        bytes(gif),
        bytes(bmp),
        frames.getvalue(),
        b"II*\0\x08\0\0\0\x02\0\x00\x01\x04\0\x01\0\0\0\xff\xff\xff\x7f\x01\x01\x04\0\x01\0\0\0\xff\xff\xff\x7f\0\0\0\0",
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        b"%PDF-1.7\n",
        b"8BPS\0\x01\0\0\0\0\0\0\0\x03\xff\xff\xff\xff\xff\xff\xff\xff\0\x08\0\x03",
        b"P6\n99999 99999\n255\n",
        b"GIF89a",
        b"",
        b"\0" * 100,
        b"PK\x03\x04",
    )


def strange_image(rng: random.Random) -> bytes:
    """A damaged image, a bomb, or now and then a good one."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(bombs())
    good = good_image(rng.choice(FORMATS))
    return good if kind < 0.35 else damaged(rng, good)


FILE_NAMES = (
    *("a.png", "", "../../../etc/cron.d/x", "/etc/passwd", "a\\..\\b.png", "x" * 5_000, "CON", "a;b=c.png", "%00.png"),
    *("<img src=x onerror=alert(1)>.png", "\u202egnp.exe", "a.png\0.exe", "é.jpg", ".", "..", "-rf", "'; ls"),
)


def multipart(rng: random.Random, base: dict[str, Any]) -> tuple[bytes, str]:
    """A multipart body with some things wrong, none now and then, and its media type."""

    def some(good: Any, *bad: Any, share: float = 0.1) -> Any:
        return rng.choice(bad) if rng.random() < share else good

    boundary = some("limit123", "b", "x" * 70, "x" * 500, "a b", "--", share=0.2)
    parts: list[bytes] = []
    if rng.random() < 0.8:
        told = json.dumps(base).encode() if rng.random() < 0.6 else strange_json(rng, base)
        parts.append(b'Content-Disposition: form-data; name="request"\r\n\r\n' + told)
    for number in range(some(1, 0, 2, 33, 2_000, share=0.2)):
        name = some("images", "", "request", "image[]", "file", "n" * 3_000, 'a"b')
        file = some("a.png", *FILE_NAMES, share=0.5)
        shown = some(f'; filename="{file}"', f"; filename*=utf-8''{file}", "")
        media = some("image/png", "image/jpeg", "text/plain", "x" * 500, "application/json", "", share=0.3)
        head = f'Content-Disposition: form-data; name="{name}"{shown}\r\nContent-Type: {media}\r\n\r\n'
        image = good_image(rng.choice(FORMATS)) if rng.random() < 0.4 else strange_image(rng)
        parts.append(head.encode("utf-8", "replace") + (image if number < 40 else b"x"))
    if rng.random() < 0.3:
        rng.shuffle(parts)
    mark = b"--" + boundary.encode()
    body = b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n"
    kind = rng.randrange(16)
    if kind == 0:
        body = body[: rng.randrange(len(body))]
    elif kind == 1:
        body = damaged(rng, body)
    elif kind == 2:
        body = rng.choice((b"", b"\r\n", mark, mark + b"--", body.replace(b"\r\n", b"\n"), b"x" * 5_000 + body))
    elif kind == 3:
        body = body.replace(b"form-data", rng.choice((b"attachment", b"form-data; form-data", b"")))
    elif kind == 4:
        body = body.replace(b"Content-Type", b"X-" + b"h" * 20_000, 1)
    shown = some(f"; boundary={boundary}", f'; boundary="{boundary}"', "", "; boundary=", "; boundary=other", share=0.2)
    return body, f"multipart/form-data{shown}"


def _multipart_case(rng: random.Random) -> bytes:
    path, base = rng.choice(
        (("/v1/search", {"k": 2}), ("/v1/search", {"k": 2}), ("/v1/recommend", {"k": 2}), *POSTS[:2])
    )
    body, media = multipart(rng, base)
    return message("POST", path, body, media)


# Paths, headers, methods, framing


def _path_case(rng: random.Random) -> bytes:
    segment = rng.choice(
        (
            *(
                "..",
                "../../../../etc/passwd",
                "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
                "..%5c..%5cx",
                "%00",
                "%ff%fe",
                "%zz",
                "%",
            ),
            *(
                "....//....//etc/passwd",
                "/etc/passwd",
                "a" * 9_000,
                "a/" * 500,
                "%252e%252e/x",
                "org/animals%230",
                "org//x",
            ),
            *(
                "-1",
                "999999999999999999999",
                "3.5",
                "NaN",
                "%D9%A3",
                "0x3",
                "1e3",
                "3%0d%0aX-Evil:1",
                "org/animals/usage",
            ),
            *(
                "open_clip:a/b",
                "~root",
                "index.html%00.js",
                "app.js/",
                ".",
                "org/animals/",
                "CON",
                "ORG/ANIMALS",
                "org",
            ),
        )
    )
    name = rng.choice(("names", "outputs", "limit", "after", "where", "text", "size", "output", "x", "limit"))
    values = (
        *STRANGE_NUMBERS[:-6],
        "1,2",
        ",",
        "0,0,0",
        "7" * 3_000,
        "%00",
        "%ff",
        "library%3Dtimm",
        "a%20b",
        "",
        "org/animals",
    )
    query = "&".join(f"{name}={rng.choice(values)}" for _ in range(rng.choice((0, 1, 1, 2, 200))))
    base = rng.choice(("/web/", "/v1/models/", "/v1/probes/", "/v1/jobs/", "/", "/v1/", "/v1/models/org/animals"))
    if base == "/v1/probes/" and rng.random() < 0.7:
        path = f"/v1/probes/{rng.choice((segment, '3', '79', '80'))}/image"
    else:
        path = rng.choice((base + segment, base.rstrip("/"), rng.choice(GETS)))
    return message(rng.choices(("GET", "HEAD", "DELETE"), (9, 1, 1))[0], f"{path}?{query}" if query else path)


def _header_case(rng: random.Random) -> bytes:
    headers = rng.sample(STRANGE_HEADERS, rng.choice((1, 1, 2, 4)))
    if rng.random() < 0.5:
        path, base = rng.choice(POSTS[:2])
        return message("POST", path, json.dumps(base).encode(), "application/json", headers)
    return message("GET", rng.choice(GETS), headers=headers)


def _method_case(rng: random.Random) -> bytes:
    method = rng.choice([method for method in METHODS if method not in {"CONNECT", "get", "M-SEARCH"}])
    body = rng.choice((None, b"", b"{}", b"x" * 100))
    return message(method, rng.choice((*GETS, *(path for path, _ in POSTS), "*")), body)


def _framing_case(rng: random.Random) -> bytes:
    body = json.dumps(SEARCH).encode()
    head = b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    chunk = b"%x\r\n%s\r\n" % (len(body), body)
    length = rng.choice(
        (b"-1", b"x", b"", b"99999999999999999999", b"1e3", b"+5", b"0x10", b"5, 6", b"%d" % (len(body) + 50))
    )
    choices: tuple[Callable[[], bytes], ...] = (
        lambda: head + b"Content-Length: " + length + b"\r\n\r\n" + body,
        lambda: head + b"Content-Length: %d\r\n\r\n" % rng.randrange(len(body)) + body,
        lambda: head + b"Content-Length: 5\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        lambda: head + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + chunk + b"0\r\n\r\n",
        lambda: head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk[: rng.randrange(len(chunk))],
        lambda: (
            head
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + rng.choice((b"zz\r\n", b"ffffffffffffffffff\r\n", b"-1\r\n"))
            + body
        ),
        lambda: (
            head
            + b"Transfer-Encoding: "
            + rng.choice((b"gzip, chunked", b"x", b"chunked, chunked"))
            + b"\r\n\r\n"
            + chunk
        ),
        lambda: head + b"\r\n" + body,
        lambda: (
            head.replace(b"HTTP/1.1", rng.choice((b"HTTP/1.0", b"HTTP/9.9", b"", b"HTTP/2.0", b"http/1.1"))) + b"\r\n"
        ),
        lambda: (
            head.replace(b"Host: 127.0.0.1\r\n", rng.choice((b"", b"Host: a\r\nHost: b\r\n", b"Host\r\n", b" : x\r\n")))
            + b"\r\n"
        ),
        lambda: head.replace(b"\r\n", b"\n") + b"\n",
        lambda: head + b"X: a\0b\r\nY: \x01\r\nContent-Length: 0\r\n\r\n",
        lambda: b"GET http://evil.example/v1/index HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        lambda: b"CONNECT evil.example:443 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        lambda: b"GET /" + rng.randbytes(40) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        lambda: (
            b"GET /"
            + b"a" * rng.choice((70_000, 200_000))
            + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        ),
        lambda: message("GET", "/healthz").replace(b"close", b"keep-alive") * 3 + message("GET", "/v1/index"),
        lambda: damaged(rng, head + b"Content-Length: %d\r\n\r\n" % len(body) + body),
        lambda: rng.randbytes(rng.randrange(1, 300)),
    )
    return rng.choice(choices)()


MAKERS: dict[str, tuple[int, Callable[[random.Random], bytes]]] = {
    "json": (30, _json_case),
    "multipart": (35, _multipart_case),
    "path": (12, _path_case),
    "header": (8, _header_case),
    "method": (5, _method_case),
    "framing": (10, _framing_case),
}
"""Share and maker of each kind."""
