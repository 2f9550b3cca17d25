"""The settings of ``hubhound serve``, each once: name, type, default, unit, description.

The command's options and the environment's variables follow from these fields: ``max_hits`` is ``--max-hits`` and
``HUBHOUND_SERVE_MAX_HITS``. What the command line says goes before the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.errors import InputError, one_line

PREFIX = "HUBHOUND_SERVE_"
"""Of the variables in the environment."""

Texts = Annotated[tuple[str, ...], NoDecode]
"""A list; in the environment its values are separated by commas."""

_DEVICE = re.compile(r"(?:cpu|cuda|mps|xpu)(?::\d{1,3})?")
_PLAIN = {
    "int_parsing": "write a whole number",
    "float_parsing": "write a number",
    "bool_parsing": "write yes or no",
    "string_pattern_mismatch": "write http://HOST or https://HOST",
}  # instead of what pydantic says


def _unit(name: str) -> dict[str, Any]:
    return {"unit": name}


class Settings(BaseSettings):
    """How the service runs. Made with :meth:`read`, or by keyword in programs."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", populate_by_name=True, env_ignore_empty=True
    )

    index: Path = Field(
        validation_alias=AliasChoices(PREFIX + "INDEX", "HUBHOUND_INDEX"),
        description="The index: a folder, or qdrant://HOST:PORT/NAME.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; others than this machine's need "
                      "--api-key-file or --insecure.")  # fmt: skip
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 for a free one.")
    preload: bool = Field(
        True, description="Load the encoder before the first request; without, the first new text waits for it."
    )
    device: str = Field("auto", min_length=1, description="Where the encoder and models run: auto, cpu, cuda, mps ...")
    insecure: bool = Field(False, description="Listen on any address without keys.")
    api_key_file: Path | None = Field(
        None, description="Who may ask: lines of NAME KEY; read again when it changes. By default everybody."
    )
    rate_limit: float = Field(
        600.0,
        ge=0,
        allow_inf_nan=False,
        description="Requests that one key may make, or without keys one address that is not this machine's; 0 for "
        "any number.",
        json_schema_extra=_unit("requests/min"),
    )
    cors_origin: Texts = Field(
        (), description="An origin whose pages may ask, such as https://example.org; repeatable."
    )
    allowed_host: Texts = Field((), description="A host name by which the service may be asked; repeatable.")
    max_body_mb: float = Field(
        64.0, gt=0, allow_inf_nan=False, description="Largest body of a request.", json_schema_extra=_unit("MB")
    )
    max_images: int = Field(32, ge=1, description="Most images in one request.", json_schema_extra=_unit("images"))
    max_image_mb: float = Field(
        20.0, gt=0, allow_inf_nan=False, description="Largest file of an image.", json_schema_extra=_unit("MB")
    )
    max_image_megapixels: float = Field(
        50.0, gt=0, allow_inf_nan=False, description="Largest image.", json_schema_extra=_unit("megapixels")
    )
    max_concepts: int = Field(
        100, ge=1, description="Most concepts in one search.", json_schema_extra=_unit("concepts")
    )
    max_hits: int = Field(
        1000, ge=1, description="Most hits per question, the largest k.", json_schema_extra=_unit("hits")
    )
    max_total_hits: int = Field(
        10_000,
        ge=1,
        description="Most hits in one answer: k times the number of concepts, or of the outputs of a model in like.",
        json_schema_extra=_unit("hits"),
    )
    request_timeout_s: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="How long a request may take.", json_schema_extra=_unit("s")
    )
    max_in_flight: int = Field(
        128, ge=1, description="Requests answered at once; more are told to come again.",
        json_schema_extra=_unit("requests"),
    )  # fmt: skip
    threads: int = Field(
        0, ge=0, le=1024, description="Searches that run at once; 0 for one a core.", json_schema_extra=_unit("threads")
    )
    concept_cache: int = Field(
        20_000, ge=1, description="Embeddings of concepts kept in memory.", json_schema_extra=_unit("concepts")
    )
    batch_texts: int = Field(
        64, ge=1, description="New texts that the encoder takes at once.", json_schema_extra=_unit("texts")
    )
    refresh_s: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="How often a new generation of the index is looked for.",
        json_schema_extra=_unit("s"),
    )
    drain_s: float = Field(
        8.0,
        ge=0,
        le=9.0,
        allow_inf_nan=False,
        description="How long requests may still run after the service was told to end.",
        json_schema_extra=_unit("s"),
    )
    run_models: bool = Field(
        True, description="Whether recommendations and reranking may load and run models of the index."
    )
    models: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Where models are, a folder in Hub layout; repeatable. Others are looked for where they were "
        "added from, or on the Hub.",
    )  # fmt: skip
    max_jobs: int = Field(8, ge=1, description="Jobs that wait or run.", json_schema_extra=_unit("jobs"))
    job_grace_s: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="What takes no longer is answered at once instead of with a job.",
        json_schema_extra=_unit("s"),
    )
    job_keep_s: float = Field(
        3600.0, gt=0, allow_inf_nan=False, description="How long a finished job is kept.", json_schema_extra=_unit("s")
    )
    job_timeout_s: float = Field(
        3600.0,
        gt=0,
        allow_inf_nan=False,
        description="How long a job may run; then its process is killed.",
        json_schema_extra=_unit("s"),
    )
    names: bool = Field(True, description="Name what outputs recognise; the vocabulary is embedded in the background.")
    vocabulary: Path | None = Field(
        None, description="Phrases to name outputs with, one a line. By default the class names of ImageNet-21k."
    )
    thumbnail_px: int = Field(
        192, ge=32, le=512, description="Longer side of a probe's thumbnail.", json_schema_extra=_unit("pixels")
    )
    hub_url: str = Field(
        "https://huggingface.co", pattern=r"^https?://[^\s/]+[^\s]*$", description="The hub that models are linked to."
    )
    log_format: Literal["text", "json"] = Field("text", description="How lines of the log are written.")

    @field_validator("cors_origin", "allowed_host", "models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """The environment has lists as texts."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("index", "api_key_file", "vocabulary", mode="after")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else value

    @classmethod
    def read(cls, given: Mapping[str, object]) -> Self:
        """Settings from the command line and, for what that leaves out, the environment.

        Args:
            given: Values by the fields' names.

        Raises:
            InputError: A value is missing or out of range, or a variable is none of ours.
        """
        _check_variables(os.environ)
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            name = name.removeprefix(PREFIX).lower() if name.startswith(PREFIX) else name
            if first["type"] == "missing":
                raise InputError(f"{flag(name)} is missing: give it, or set {variable(name)}") from error
            where = flag(name) if name in given else variable(name)
            shown = str(first["input"])[:100]
            told = _PLAIN.get(first["type"]) or f"{first['msg'][:1].lower()}{first['msg'][1:]}"
            raise InputError(f"{where} {shown!r}: {told}") from error

    @property
    def loopback(self) -> bool:
        """Whether only this machine can ask."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def check_exposure(self) -> None:
        """Refuses to be asked by strangers without keys.

        Raises:
            InputError: The address is not this machine's own, and there are neither keys nor ``insecure``.
        """
        if not (self.loopback or self.api_key_file or self.insecure):
            raise InputError(
                f"--host {self.host}: others could ask without a key: add --api-key-file FILE, or --insecure if that "
                "is meant"
            )

    def check_device(self) -> None:
        """Refuses a device that is not there; ``auto`` and ``cpu`` always are, and torch is not loaded for them.

        Raises:
            InputError: It has another name than devices have, or this machine cannot use it.
        """
        if self.device in {"auto", "cpu"}:
            return
        if not _DEVICE.fullmatch(self.device):
            raise InputError(f"--device {one_line(self.device, 100)!r}: use auto, cpu, cuda, cuda:1, mps or xpu")
        from engine.throughput import pick_device

        try:
            pick_device(self.device)
        except InputError as error:
            why = str(error).partition("cannot be used: ")[2].partition(". ")[0]
            raise InputError(f"--device {self.device!r} cannot be used here: {one_line(why, 200)}") from error

    def check_files(self) -> None:
        """Refuses a vocabulary and folders of models that are not there.

        Raises:
            InputError: One is not.
        """
        if self.vocabulary and not self.vocabulary.is_file():
            raise InputError(f"--vocabulary {self.vocabulary}: there is no such file: give one with a phrase a line")
        for folder in self.models:
            if not folder.is_dir():
                raise InputError(f"--models {folder}: there is no such folder: give one that has models in Hub layout")


def _check_variables(environment: Mapping[str, str]) -> None:
    """Refuses variables that look like ours and are none: most are misspelt, and what they say would not be done."""
    known = {variable(name) for name in Settings.model_fields} | {PREFIX + "INDEX"}
    for name, value in sorted(environment.items()):
        if value and name.upper().startswith(PREFIX) and name.upper() not in known:
            rests = [one.removeprefix(PREFIX) for one in known if one.startswith(PREFIX)]
            near = get_close_matches(name.upper().removeprefix(PREFIX), rests, n=1)
            hint = f"did you mean {PREFIX}{near[0]}?" if near else "'hubhound serve --help' has those there are"
            raise InputError(f"{one_line(name, 100)}: there is no such setting; {hint}")


def flag(name: str) -> str:
    """The option of a setting: ``--max-hits``."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The variable of a setting in the environment; the index has one that all commands share."""
    return "HUBHOUND_INDEX" if name == "index" else PREFIX + name.upper()
