"""API keys: their file, and how they are compared."""

from __future__ import annotations

import hmac
import logging
import os
from hashlib import sha256
from pathlib import Path

import pytest

from engine.errors import InputError
from query.api import keys as keys_module
from query.api.errors import LOGGER, ApiError, ProblemKind
from query.api.keys import ApiKeys

ALICE, BOB, CAROL = "alice-0123456789abcdef", "bob-0123456789abcdefgh", "carol-0123456789abcdef"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    hidden = sha256(CAROL.encode()).hexdigest().upper()
    path.write_text(f"# people\n\nalice {ALICE}\n  bob\t{BOB}  \n   # late\ncarol sha256:{hidden}\n")
    return path


def refused(keys: ApiKeys, *authorisation: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        keys.admit(list(authorisation))
    assert caught.value.kind is ProblemKind.UNAUTHORISED
    assert caught.value.problem.headers["WWW-Authenticate"].startswith("Bearer")
    return caught.value


def test_the_right_key_has_its_name(path: Path) -> None:
    keys = ApiKeys(path)
    assert len(keys) == 3
    for name, key in (("alice", ALICE), ("bob", BOB), ("carol", CAROL)):
        assert keys.admit([b"Bearer " + key.encode()]) == name
        assert keys.admit([b"bearer   " + key.encode() + b" "]) == name


@pytest.mark.parametrize(
    "authorisation",
    [
        [],
        [b""],
        [b"Bearer"],
        [b"Bearer "],
        [b"Basic YWxpY2U6eA=="],
        [ALICE.encode()],
        [b"Bearer " + ALICE[:-1].encode()],
        [b"Bearer " + ALICE.upper().encode()],
        [b"Bearer " + ALICE.encode() + b"x"],
        [b"Bearer " + ALICE.encode() + b" " + BOB.encode()],
        [b"Bearer " + ALICE.encode(), b"Bearer " + ALICE.encode()],
        [b"Bearer " + ALICE.encode(), b"Bearer " + BOB.encode()],
        [b"Bearer alice"],
        ["Bearer schlüssel-€-ünïcödé".encode()],
        [b"Bearer \xff\xfe\x80\x00" * 4],
        [b"Bearer " + b"x" * 100_000],
        [b"Bearer sha256:" + sha256(CAROL.encode()).hexdigest().encode()],
        [b"Bearer " + sha256(CAROL.encode()).hexdigest().encode()],
    ],
    ids=lambda given: repr(given)[:60],
)
def test_anything_else_is_refused(path: Path, authorisation: list[bytes]) -> None:
    error = refused(ApiKeys(path), *authorisation)
    assert ALICE not in error.detail
    assert "alice" not in error.detail


@pytest.mark.parametrize("key", [ALICE, BOB, CAROL, "nobody-0123456789abcdef", "x", ALICE[:-1] + "g"])
def test_every_key_costs_the_same_comparisons(path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, the last, a near miss and a far one: three digests of 32 bytes are compared, none left out."""
    compared: list[tuple[bytes, bytes]] = []

    def counting(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return hmac.compare_digest(left, right)

    keys = ApiKeys(path)
    monkeypatch.setattr(keys_module, "hmac", type("hmac", (), {"compare_digest": staticmethod(counting)}))
    keys.name_of(key.encode())
    assert len(compared) == 3
    assert {right for _, right in compared} == {sha256(each.encode()).digest() for each in (ALICE, BOB, CAROL)}
    assert {left for left, _ in compared} == {sha256(key.encode()).digest()}


def test_a_revoked_key_ends_and_a_new_one_works_within_a_second(path: Path, clock: Clock) -> None:
    keys = ApiKeys(path, clock)
    assert keys.name_of(ALICE.encode()) == "alice"
    path.write_text(f"dora dora-{'0' * 16}\nbob {BOB}\n")
    clock.now = 0.99
    assert keys.name_of(ALICE.encode()) == "alice"  # the file is looked at once a second
    clock.now = 1.0
    assert keys.name_of(ALICE.encode()) is None
    assert keys.name_of(b"dora-" + b"0" * 16) == "dora"
    assert keys.name_of(BOB.encode()) == "bob"


def test_a_change_is_seen_by_time_size_or_file(path: Path, clock: Clock) -> None:
    """A file that was replaced by one of the same length and time is another file."""
    keys = ApiKeys(path, clock)
    before = path.stat()
    other = path.with_name("other")
    other.write_text(path.read_text().replace(ALICE, ALICE[::-1]))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)
    clock.now += 1
    assert keys.name_of(ALICE.encode()) is None
    assert keys.name_of(ALICE[::-1].encode()) == "alice"


def test_an_unchanged_file_is_not_read_again(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ApiKeys(path, clock)
    monkeypatch.setattr(keys_module, "_read", lambda _: pytest.fail("it was read"))
    for _ in range(5):
        clock.now += 1
        assert keys.name_of(ALICE.encode()) == "alice"


def test_without_its_file_nobody_gets_in_and_with_it_all_do(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys(path, clock)
    text = path.read_text()
    path.unlink()
    for _ in range(3):
        clock.now += 1
        assert keys.name_of(ALICE.encode()) is None
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1  # said once
    path.write_text(text)
    clock.now += 1
    assert keys.name_of(ALICE.encode()) == "alice"


def test_lines_that_go_wrong_later_are_passed_over_and_logged_without_keys(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys(path, clock)
    with path.open("ab") as file:
        file.write(
            b"eve short\nnonsense\nalice another-0123456789abcdef\n\xff\xfe\x00 0123456789abcdef01\nfred a b c\n"
        )
        file.write(f"gil {BOB}\nhal sha256:beef\n".encode())
    clock.now += 1
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        assert keys.name_of(ALICE.encode()) == "alice"
    assert len(keys) == 3
    assert keys.name_of(b"another-0123456789abcdef") is None
    assert sum("passed over" in record.getMessage() for record in caplog.records) == 7
    assert "another-" not in caplog.text
    assert BOB not in caplog.text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no key"),
        ("# nobody\n", "holds no key"),
        ("alice\n", "line 1: it is not NAME KEY"),
        ("\n# x\nalice short\n", "line 3: the key of alice is not 16 to 512"),
        ("alice 0123456789abcde\n", "16 to 512"),
        (f"alice {ALICE}\nalice {BOB}\n", "the name alice is taken"),
        (f"alice {ALICE}\nbob {ALICE}\n", "the key of bob is that of a line before"),
        (f"alice {ALICE}\nbob sha256:{sha256(ALICE.encode()).hexdigest()}\n", "that of a line before"),
        ("alice sha256:abc\n", "64 hexadecimal digits"),
        (f"al/ice {ALICE}\n", "the name 'al/ice'"),
        (f"alice {ALICE}é\n", "printable"),
        ("a " + "k" * 1_000_000, "larger than"),
    ],
)
def test_a_file_that_is_wrong_at_the_start_says_so(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError) as caught:
        ApiKeys(tmp_path / "keys")
    assert why in str(caught.value)
    assert "--api-key-file" in str(caught.value)
    for key in (ALICE, BOB):
        assert key not in str(caught.value)


def test_a_missing_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="--api-key-file"):
            ApiKeys(path)


def test_guesses_leave_nothing_behind(path: Path) -> None:
    keys = ApiKeys(path)

    def size() -> int:
        return sum(len(held) for held in vars(keys).values() if hasattr(held, "__len__"))

    before = size()
    for number in range(2000):
        assert keys.name_of(b"guess-%020d" % number) is None
    assert size() == before
