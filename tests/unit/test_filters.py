"""What a crawl is about: outside, refused, or in it."""

import hashlib
from dataclasses import replace

import pytest

from engine.errors import InputError, Reason
from indexers.crawl.filters import Filters, moment
from indexers.crawl.records import Listed
from indexers.loaders.base import Metadata

STATED = Metadata(licence="apache-2.0", tags=("vision", "arxiv:1"), downloads=50, likes=1, library="timm")
MODEL = Listed(
    "org/name",
    "a" * 40,
    modified="2026-05-01T12:00:00.000Z",
    size_bytes=4_000_000,
    parameters=1_000_000,
    metadata=STATED,
)


def stated(**changes):
    return replace(MODEL, metadata=replace(STATED, **changes))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2026-01-31", "2026-01-31T00:00:00.000Z"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31T12:00:00.123456+02:00", "2026-01-31T10:00:00.123Z"),
        ("2026-01-31T12:00:00", "2026-01-31T12:00:00.000Z"),
        ("0001-01-01T00:00:00+14:00", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_moments_have_one_form(text, expected):
    assert moment(text) == expected


@pytest.mark.parametrize(
    "filters, model, said",
    [
        ({}, MODEL, None),
        ({"author": "Org"}, MODEL, None),
        ({"author": "or"}, MODEL, "author"),
        ({"tags": ("vision",)}, MODEL, None),
        ({"tags": ("timm", "license:apache-2.0")}, MODEL, None),
        ({"tags": ("vision", "medical")}, MODEL, "not tagged medical"),
        ({"min_downloads": 50}, MODEL, None),
        ({"min_downloads": 51}, MODEL, "50 downloads"),
        ({"min_downloads": 51}, stated(downloads=None), None),
        ({"updated_since": "2026-05-01T12:00:00Z"}, MODEL, None),
        ({"updated_since": "2026-05-01T14:00:00+02:00"}, MODEL, None),
        ({"updated_since": "2026-05-02"}, MODEL, "2026-05-02T00:00:00.000Z"),
        ({"updated_since": "2026-05-02"}, replace(MODEL, modified=None), None),
        # None of these is for the listing: such models are refused, not skipped.
        ({"libraries": ("x",), "licences": ("x",), "max_size_bytes": 1, "max_parameters": 1}, MODEL, None),
    ],
)
def test_what_is_outside(filters, model, said):
    reason = Filters(**filters).skip(model)
    assert (reason is None) if said is None else said in reason


def test_what_is_known_stays_when_its_downloads_fall_but_not_when_it_loses_its_tag():
    assert Filters(min_downloads=51).skip(MODEL, known=True) is None
    assert Filters(updated_since="2026-06-01").skip(MODEL, known=True) is None
    assert Filters(tags=("medical",)).skip(MODEL, known=True) is not None


@pytest.mark.parametrize(
    "filters, model, reason, said",
    [
        ({"libraries": ("Timm", "transformers")}, MODEL, None, None),
        ({"libraries": ("transformers",)}, MODEL, Reason.FILTERED, "timm"),
        ({"libraries": ("timm",)}, stated(library=None), Reason.FILTERED, "not stated"),
        ({"licences": ("MIT", "Apache-2.0")}, MODEL, None, None),
        ({"licences": ("mit",)}, MODEL, Reason.FILTERED, "apache-2.0"),
        ({"licences": ("mit",)}, stated(licence=None), Reason.FILTERED, "not stated"),
        ({"licences": ("mit", "apache-2.0")}, stated(licence="mit, apache-2.0"), None, None),
        ({"licences": ("mit",)}, stated(licence="mit, other"), Reason.FILTERED, "other"),
        ({"max_parameters": 1_000_000}, MODEL, None, None),
        ({"max_parameters": 999_999}, MODEL, Reason.TOO_LARGE, "1,000,000 parameters"),
        ({"max_parameters": 1}, replace(MODEL, parameters=None), None, None),
        ({"max_size_bytes": 4_000_000}, MODEL, None, None),
        ({"max_size_bytes": 3_999_999}, MODEL, Reason.TOO_LARGE, "4,000,000 bytes"),
        ({"max_size_bytes": 1}, replace(MODEL, size_bytes=None), None, None),
        # With a token it may open.
        ({}, replace(MODEL, gated=True), None, None),
    ],
)
def test_what_is_refused(filters, model, reason, said):
    refusal = Filters(**filters).refusal(model)
    if reason is None:
        assert refusal is None
    else:
        assert refusal.reason == reason
        assert said in refusal.detail
        assert "\n" not in refusal.detail


def test_shards_part_a_hub_by_name_alone():
    names = [f"org{i % 7}/model-{i}" for i in range(3000)]
    shards = [Filters(shard=(i, 3)) for i in range(3)]
    parts = [{name for name in names if shard.skip(replace(MODEL, repo=name)) is None} for shard in shards]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert all(900 < len(part) < 1100 for part in parts)
    # Independent of everything but the name, and the same for ever.
    other = Listed("org/name", "b" * 64, modified=None, metadata=Metadata(downloads=0))
    assert [shard.skip(other) for shard in shards] == [shard.skip(MODEL) for shard in shards]
    for name in names[:100]:
        part = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % 3
        assert name in parts[part]
    assert Filters(shard=(0, 1)).skip(MODEL) is None


def test_what_is_asked_for_has_one_text_each():
    asked = [
        Filters(),
        Filters(author="org"),
        Filters(tags=("a", "b")),
        Filters(min_downloads=5),
        Filters(updated_since="2026-01-01"),
        Filters(shard=(0, 2)),
        Filters(shard=(1, 2)),
    ]
    assert len({filters.query for filters in asked}) == len(asked)
    assert Filters(tags=("a", "b")).query == Filters(tags=("b", "a")).query
    assert Filters(updated_since="2026-01-01").query == Filters(updated_since="2026-01-01T01:00:00+01:00").query
    # These decide what becomes of a model, not what is listed.
    assert Filters(libraries=("timm",), licences=("mit",), max_size_bytes=1, max_parameters=1).query == ""


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"task": " "}, "task"),
        ({"author": "org/name"}, "author"),
        ({"author": ""}, "author"),
        ({"min_downloads": -1}, "downloads"),
        ({"updated_since": "last week"}, "2026-01-31"),
        ({"max_size_bytes": 0}, "more than 0"),
        ({"max_parameters": -5}, "more than 0"),
        ({"shard": (2, 2)}, "2/2"),
        ({"shard": (-1, 2)}, "-1/2"),
        ({"shard": (0, 0)}, "0/0"),
    ],
)
def test_what_cannot_be_asked_for(wrong, said):
    with pytest.raises(InputError) as caught:
        Filters(**wrong)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
