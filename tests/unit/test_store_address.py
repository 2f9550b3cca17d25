"""Addresses of indexes on a server, keys and certificates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import InputError, StoreError
from engine.store.address import ServerAddress
from engine.store.base import StoreLayout
from engine.store.server import ServerStore
from tests.support.output_tables import fast_folder
from tests.support.qdrant_server import standin, tls_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "API_KEY_FILE", "CA"):
        monkeypatch.delenv(f"HUBHOUND_QDRANT_{name}", raising=False)


@pytest.mark.parametrize(
    ("text", "address", "canonical"),
    [
        ("qdrant://host/x", ServerAddress("host", 6333, "x"), "qdrant://host:6333/x"),
        ("QDRANT://Host.Example.:7/A_b-9", ServerAddress("host.example", 7, "A_b-9"), "qdrant://host.example:7/A_b-9"),
        ("qdrant+https://h/x", ServerAddress("h", 6333, "x", True), "qdrant+https://h:6333/x"),
        ("qdrant://h/x?grpc=6334", ServerAddress("h", 6333, "x", False, 6334), "qdrant://h:6333/x?grpc=6334"),
        ("qdrant://[::1]:65535/x", ServerAddress("::1", 65535, "x"), "qdrant://[::1]:65535/x"),
        ("qdrant://host/x/", ServerAddress("host", 6333, "x"), "qdrant://host:6333/x"),
        ("qdrant://h/x/?grpc=6334", ServerAddress("h", 6333, "x", False, 6334), "qdrant://h:6333/x?grpc=6334"),
        ("qdrant://10.0.0.1/" + "n" * 64, ServerAddress("10.0.0.1", 6333, "n" * 64), None),
    ],
)
def test_addresses_that_are_understood(text: str, address: ServerAddress, canonical: str | None) -> None:
    assert ServerAddress.is_server(text)
    assert ServerAddress.parse(text) == address
    assert canonical is None or str(address) == canonical
    assert ServerAddress.parse(str(address)) == address
    scheme = "https" if address.https else "http"
    host = f"[{address.host}]" if ":" in address.host else address.host
    assert address.url == f"{scheme}://{host}:{address.port}"


@pytest.mark.parametrize(
    "text",
    [
        "qdrant://host",
        "qdrant://host/",
        "qdrant:///x",
        "qdrant://host/x/y",
        "qdrant://host//",
        "qdrant://host/x//",
        "qdrant:/host:6333/x",
        "qdrant:host/x",
        "qdrant+https:/host/x",
        "qdrant://host/-x",
        "qdrant://host/_x",
        "qdrant://host/" + "n" * 65,
        "qdrant://host/a%20b",
        "qdrant://host/é",
        "qdrant://host:0/x",
        "qdrant://host:65536/x",
        "qdrant://host:port/x",
        "qdrant://ho st/x",
        "qdrant://host/x\n",
        "qdrant://host/x#y",
        "qdrant://host/x#",
        "qdrant://host/x?grpc=",
        "qdrant://host/x?grpc=0",
        "qdrant://host/x?grpc=70000",
        "qdrant://host/x?grpc=1&grpc=2",
        "qdrant://host/x?port=1",
        "qdrant://[::1/x",
        "qdrant://h!st/x",
        "http://host/x",
        "https://host:6333/x",
        "qdrants://host/x",
    ],
)
def test_addresses_that_are_refused(text: str) -> None:
    assert ServerAddress.is_server(text), "it is no folder either"
    with pytest.raises(InputError) as caught:
        ServerAddress.parse(text)
    assert ("\n" not in str(caught.value) and "qdrant" in str(caught.value)) or "port" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "qdrant://me:secret@host/x",
        "qdrant://secret@host/x",
        "http://a:secret@host/x",
        "qdrant://:secret@h:0/x",
        "qdrant:/me:secret@host/x",
        "qdrant:secret@host/x",
        "qdrant://me:pa/secret@host/x",
        "qdrant://host/x?api_key=secret",
        "qdrant://host/x?grpc=6334&api_key=secret",
    ],
)
def test_credentials_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InputError) as caught:
        ServerAddress.parse(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["index", "/data/index", "./qdrant:/x", "C:\\index", "qdrant", "a//b", ""])
def test_folders_are_no_servers(text: str) -> None:
    assert not ServerAddress.is_server(text)


def test_looking_at_an_address_does_not_load_the_client() -> None:
    code = (
        "import sys; from engine.store.address import ServerAddress as A; A.parse('qdrant://h/x');"
        "print('qdrant_client' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False"]


def key_of(address: str = "qdrant://host/x") -> str | None:
    client = ServerAddress.parse(address).connect()
    key = client.init_options["api_key"]
    client.close()
    return None if key is None else str(key)


def test_keys_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_of() is None
    monkeypatch.setenv("HUBHOUND_QDRANT_API_KEY", "from-environment")
    assert key_of() == "from-environment" == key_of("qdrant+https://host/x")
    file = tmp_path / "key"
    file.write_text("from-file\n")
    monkeypatch.setenv("HUBHOUND_QDRANT_API_KEY_FILE", str(file))
    with pytest.raises(InputError, match="both set"):
        key_of()
    monkeypatch.setenv("HUBHOUND_QDRANT_API_KEY", "")
    assert key_of() == "from-file"
    for content in (b"", b"two words", b"two\nlines", "schlüssel".encode(), b"\xff\xfe", b" \n"):
        file.write_bytes(content)
        with pytest.raises(InputError, match="API_KEY_FILE") as caught:
            key_of()
        assert "two" not in str(caught.value)
    file.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        key_of()


def test_a_certificate_is_trusted_by_the_authority_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tls_files(tmp_path)
    layout = StoreLayout(probes=40, top_r=6, dimension=4)
    with fast_folder(tmp_path) as folder, standin(folder, tls_certificate=certificate, tls_key=key) as server:
        address = ServerAddress.parse(f"qdrant+https://127.0.0.1:{server.port}/x")

        def make(address: ServerAddress) -> None:
            client = address.connect()
            try:
                ServerStore.create(client, address.name, layout)
            finally:
                client.close()

        with pytest.raises(StoreError, match=r"is not trusted .*HUBHOUND_QDRANT_CA") as caught:
            make(address)
        assert "\n" not in str(caught.value)
        monkeypatch.setenv("HUBHOUND_QDRANT_CA", str(certificate))
        make(address)
        monkeypatch.setenv("HUBHOUND_QDRANT_CA", str(key))
        with pytest.raises(InputError, match="HUBHOUND_QDRANT_CA"):
            make(address)
        monkeypatch.setenv("HUBHOUND_QDRANT_CA", str(tmp_path / "none.pem"))
        with pytest.raises(InputError, match="HUBHOUND_QDRANT_CA"):
            make(address)


def test_https_to_a_server_that_speaks_http(tmp_path: Path) -> None:
    with fast_folder(tmp_path) as folder, standin(folder) as server:
        client = ServerAddress.parse(f"qdrant+https://127.0.0.1:{server.port}/x").connect()
        with pytest.raises(StoreError, match="does not speak TLS"):
            ServerStore.open(client, "x")
        client.close()


def test_grpc_is_used_where_it_is_asked_for() -> None:
    client = ServerAddress.parse("qdrant://127.0.0.1:9/x?grpc=10").connect()
    assert client.init_options["prefer_grpc"] is True and client.init_options["grpc_port"] == 10
    with pytest.raises(StoreError, match=r"does not answer .*UNAVAILABLE") as caught:
        ServerStore.open(client, "x")
    assert "\n" not in str(caught.value)
    client.close()
