"""The units for a single machine: systemd understands them, they are hardened, and the sandbox of models works."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from indexers.crawl import landlock, seccomp
from tests.support.deployment import DEPLOY, UNITS, tool, unit

SERVICES = [f"{name}.service" for name in UNITS]
SWITCHES = (
    "NoNewPrivileges",
    "PrivateTmp",
    "PrivateDevices",
    "ProtectClock",
    "ProtectControlGroups",
    "ProtectHostname",
)
SWITCHES += ("ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "RestrictNamespaces", "ProtectHome")
SWITCHES += ("RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "RemoveIPC")


def units_with_a_program_that_is_here(folder: Path) -> Path:
    """systemd-analyze looks whether what a unit starts is there."""
    for path in (DEPLOY / "systemd").glob("*.*"):
        if path.is_file():
            text = path.read_text().replace("/opt/hubhound/bin/hubhound", "/bin/true")
            (folder / path.name).write_text(text)
    return folder


@pytest.mark.parametrize("name", [*SERVICES, "hubhound-backup.timer"])
def test_systemd_understands_it(name: str, tmp_path: Path) -> None:
    folder = units_with_a_program_that_is_here(tmp_path)
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", f"./{name}"],
        cwd=folder,
        env={"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_setting_that_there_is_not_is_noticed(tmp_path: Path) -> None:
    folder = units_with_a_program_that_is_here(tmp_path)
    path = folder / "hubhound-serve.service"
    path.write_text(path.read_text().replace("ProtectHome=yes", "ProtectHomes=yes"))
    program = [tool("systemd-analyze"), "verify", "--man=no", "./hubhound-serve.service"]
    environment = {"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)
    assert "ProtectHomes" in done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_it_gives_up_what_it_does_not_need(name: str) -> None:
    settings = dict(unit(name))
    for switch in SWITCHES:
        assert settings[switch] == "yes", switch
    assert settings["ProtectSystem"] == "strict"
    assert settings["CapabilityBoundingSet"] == ""
    assert settings["User"] == "hubhound"
    assert settings["SystemCallArchitectures"] == "native"
    assert "@system-service" in settings["SystemCallFilter"].split()
    assert "MemoryDenyWriteExecute" not in settings  # numba compiles while it runs


def test_exposure_is_rated_ok(tmp_path: Path) -> None:
    folder = units_with_a_program_that_is_here(tmp_path)
    for name in SERVICES:
        program = [tool("systemd-analyze"), "security", "--offline=true", "--no-pager", "--threshold=20", f"./{name}"]
        done = subprocess.run(program, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-300:]


def test_the_sandbox_of_models_gets_the_calls_that_it_is_made_of() -> None:
    """systemd's set for services lacks those by which a process gives up more."""
    allowed = set(dict(unit("hubhound-crawl.service"))["SystemCallFilter"].split())
    assert {"seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"} <= allowed
    assert (landlock.CREATE_RULESET, landlock.ADD_RULE, landlock.RESTRICT_SELF) == (444, 445, 446)
    assert seccomp.SECCOMP == (317, 277)
    listed = subprocess.run(
        [tool("systemd-analyze"), "--no-pager", "syscall-filter", "@system-service"], capture_output=True, text=True
    ).stdout.split()
    assert "capset" in listed
    assert "setpgid" in listed


def test_one_model_that_is_killed_does_not_end_the_crawl() -> None:
    settings = dict(unit("hubhound-crawl.service"))
    assert settings["OOMPolicy"] == "continue"
    assert settings["KillMode"] == "mixed"
    assert int(settings["TimeoutStopSec"]) > 20  # which the crawl gives to models in hand
    assert int(dict(unit("hubhound-serve.service"))["TimeoutStopSec"]) > 10  # the service ends before


def test_the_backup_has_the_index_to_itself_and_gives_it_back() -> None:
    settings = dict(unit("hubhound-backup.service"))
    assert settings["Conflicts"] == settings["After"] == "hubhound-crawl.service"
    assert settings["OnSuccess"] == settings["OnFailure"] == "hubhound-crawl.service"
    commands = {key: value for key, value in unit("hubhound-backup.service") if key.startswith("Exec")}
    new = commands["ExecStart"].split()[-1]
    assert new in commands["ExecStartPre"]
    assert new in commands["ExecStartPost"]
    assert f"/var/lib/{settings['StateDirectory'].split()[1]}/" in new


def test_what_is_written_is_theirs_to_write() -> None:
    for name in SERVICES:
        settings = dict(unit(name))
        told = " ".join(value for key, value in unit(name) if key == "Environment")
        writable = {f"/var/lib/{one}" for one in settings["StateDirectory"].split()}
        writable.add(f"/var/cache/{settings['CacheDirectory']}")
        for path in re.findall(r"(?<==)/var/\S+", told):
            assert any(path == one or path.startswith(f"{one}/") for one in writable), f"{name}: {path}"


def test_the_user_of_the_units_is_made() -> None:
    (line,) = (line for line in (DEPLOY / "systemd" / "hubhound.sysusers").read_text().splitlines() if line[:1] == "u")
    assert line.split()[1] == "hubhound"
