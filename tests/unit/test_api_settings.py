"""The settings of the service: where they come from, what is refused, and that flags and variables follow from them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from engine.errors import InputError
from indexers.crawl.log import logging_to
from query.api.settings import Settings, flag, variable
from query.cli.main import run
from query.cli.serve import _log, serve, settings_options


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)
    monkeypatch.delenv("HUBHOUND_SERVE_INDEX", raising=False)


def given(*arguments: str) -> Settings:
    """What the command makes of its options."""
    seen = []

    @click.command()
    @settings_options
    def command(**values: object) -> None:
        seen.append(Settings.read({name: value for name, value in values.items() if value not in (None, ())}))

    result = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0, result.output
    return seen[0]


def test_defaults() -> None:
    settings = given("--index", "zoo")
    assert settings.index == Path("zoo")
    assert (settings.host, settings.port, settings.preload, settings.insecure) == ("127.0.0.1", 8080, True, False)
    assert (settings.max_hits, settings.max_concepts, settings.max_in_flight) == (1000, 100, 128)
    assert (settings.request_timeout_s, settings.drain_s, settings.refresh_s) == (30.0, 8.0, 1.0)
    assert (settings.cors_origin, settings.allowed_host, settings.models) == ((), (), ())


def test_flags_of_every_kind() -> None:
    settings = given(
        *("--index", "zoo", "--port", "0", "--preload", "no", "--insecure", "--rate-limit", "0.5"),
        *("--cors-origin", "https://a.org", "--cors-origin", "https://b.org", "--log-format", "json"),
        *("--models", "one", "--models", "two", "--api-key-file", "keys", "--names", "yes"),
    )
    assert (settings.port, settings.preload, settings.insecure, settings.names) == (0, False, True, True)
    assert (settings.rate_limit, settings.log_format) == (0.5, "json")
    assert settings.cors_origin == ("https://a.org", "https://b.org")
    assert settings.models == (Path("one"), Path("two"))
    assert settings.api_key_file == Path("keys")


def test_the_environment_and_that_flags_go_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBHOUND_INDEX", "from-the-environment")
    monkeypatch.setenv("HUBHOUND_SERVE_MAX_HITS", "7")
    monkeypatch.setenv("HUBHOUND_SERVE_PRELOAD", "no")
    monkeypatch.setenv("HUBHOUND_SERVE_CORS_ORIGIN", "https://a.org, https://b.org")
    monkeypatch.setenv("HUBHOUND_SERVE_MODELS", "one,two")
    monkeypatch.setenv("HUBHOUND_SERVE_HOST", "")
    settings = given("--max-hits", "9")
    assert (settings.index, settings.max_hits, settings.preload) == (Path("from-the-environment"), 9, False)
    assert settings.cors_origin == ("https://a.org", "https://b.org")
    assert settings.models == (Path("one"), Path("two"))
    assert settings.host == "127.0.0.1"  # an empty variable is one that is not set
    assert given().max_hits == 7
    assert given("--index", "said").index == Path("said")
    monkeypatch.setenv("INDEX", "not-ours")
    monkeypatch.delenv("HUBHOUND_INDEX")
    with pytest.raises(InputError, match=r"^--index is missing: give it, or set HUBHOUND_INDEX$"):
        Settings.read({})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("port", 70_000, "--port '70000': input should be less than or equal to 65535"),
        ("drain_s", 60.0, "--drain-s '60.0': input should be less than or equal to 9"),
        ("hub_url", "javascript:alert(1)", "--hub-url 'javascript:alert(1)': write http://HOST or https://HOST"),
        ("hub_url", "ftp://x", "--hub-url 'ftp://x': write http://HOST or https://HOST"),
        ("request_timeout_s", float("inf"), "--request-timeout-s 'inf': input should be a finite number"),
    ],
)
def test_a_flag_out_of_range_is_one_line(name: str, value: object, told: str) -> None:
    with pytest.raises(InputError) as error:
        Settings.read({"index": "zoo", name: value})
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_a_variable_out_of_range_is_named_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, told in (
        ("MAX_IN_FLIGHT", "many", "write a whole number"),
        ("DRAIN_S", "soon", "write a number"),
        ("NAMES", "perhaps", "write yes or no"),
    ):
        with monkeypatch.context() as only, pytest.raises(InputError) as error:
            only.setenv(f"HUBHOUND_SERVE_{name}", value)
            Settings.read({"index": "zoo"})
        assert str(error.value) == f"HUBHOUND_SERVE_{name} {value!r}: {told}"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("HUBHOUND_SERVE_MAX_HTIS", "there is no such setting; did you mean HUBHOUND_SERVE_MAX_HITS?"),
        ("HUBHOUND_SERVE_API_KEYS_FILE", "there is no such setting; did you mean HUBHOUND_SERVE_API_KEY_FILE?"),
        ("hubhound_serve_prot", "there is no such setting; did you mean HUBHOUND_SERVE_PORT?"),
        ("HUBHOUND_SERVE_XYZZY", "there is no such setting; 'hubhound serve --help' has those there are"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(name: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    with pytest.raises(InputError) as error:
        Settings.read({"index": "zoo"})
    assert str(error.value) == f"{name}: {told}"
    monkeypatch.setenv(name, "")
    monkeypatch.setenv("HUBHOUND_SERVE_INDEX", "zoo")  # another name of HUBHOUND_INDEX
    monkeypatch.setenv("HUBHOUND_SERVER_MAX_HTIS", "3")  # not ours
    assert Settings.read({}).index == Path("zoo")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "cpu:", "mkldnn", "hpu", "meta"])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(InputError) as error:
        Settings.model_construct(device=device).check_device()
    assert str(error.value) == f"--device {device!r}: use auto, cpu, cuda, cuda:1, mps or xpu"


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^--device 'cuda:99' cannot be used here: \S") as error:
        Settings(index=Path("zoo"), device="cuda:99").check_device()
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_torch_is_not_loaded_for_what_is_always_there() -> None:
    program = (
        "import sys; from query.api.settings import Settings\n"
        "for device in ('auto', 'cpu'): Settings(index='zoo', device=device).check_device()\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--device", "gpu", "--device 'gpu': use auto, cpu, cuda, cuda:1, mps or xpu"),
        ("--vocabulary", "nofile", "--vocabulary nofile: there is no such file: give one with a phrase a line"),
        ("--models", "nofolder", "--models nofolder: there is no such folder: give one that has models in Hub layout"),
    ],
)
def test_what_cannot_be_used_ends_the_start(
    option: str, value: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--index", str(tmp_path), "--port", "0", option, value]) == 1
    assert capsys.readouterr().err == f"hubhound: {told}\n"


def test_what_is_told_at_the_start_is_an_event_where_programs_read(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("hubhound.serve")
    with logging_to("json") as lines:
        (handler,) = lines.handlers
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            _log("ready after 100 % of 5.2 s")
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
    told = json.loads(capsys.readouterr().err)
    assert (told["level"], told["event"], told["detail"]) == ("info", "service", "ready after 100 % of 5.2 s")


def test_every_setting_has_a_description_and_stands_in_the_help() -> None:
    shown = " ".join(CliRunner().invoke(serve, ["--help"], terminal_width=200).output.split())
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith("."), name
        assert flag(name) in shown, name
        assert variable(name) in shown, name
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if name.endswith(("_s", "_mb", "_px", "_megapixels")):
            assert extra.get("unit"), f"{name} has no unit"
    assert "default: 30 s" in shown
    assert "default: 0 threads" in shown
    assert "default: yes" in shown


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1", "[::1]"])
def test_this_machine_may_ask_without_keys(host: str) -> None:
    settings = Settings(index=Path("zoo"), host=host)
    assert settings.loopback
    settings.check_exposure()


OTHERS = ("0.0.0.0", "::", "192.168.1.7", "example.org", "127.0.0.1.example.org", "0")  # noqa: S104


@pytest.mark.parametrize("host", OTHERS)
def test_others_may_not_unless_that_is_meant(host: str) -> None:
    with pytest.raises(InputError, match=r"^--host .*: others could ask without a key: add --api-key-file FILE"):
        Settings(index=Path("zoo"), host=host).check_exposure()
    Settings(index=Path("zoo"), host=host, insecure=True).check_exposure()
    Settings(index=Path("zoo"), host=host, api_key_file=Path("keys")).check_exposure()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings(index=Path("zoo")).port = 1  # type: ignore[misc]
