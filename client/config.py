"""The site configuration: what one hospital decides for itself and keeps to itself."""

import os
import re
import stat
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from client.working_hours import parse_working_hours
from common.documents import Settings, parse_settings
from common.errors import ConfigError, list_of_faults

TABLE_SEPARATORS = {".csv": ",", ".tsv": "\t"}
DIGEST = r"[0-9a-f]{64}"
"""What the digest of a study looks like."""
_YAML_WORDS = {"true", "false", "null"}


class DataSource(Settings):
    """Where the hospital's exams are listed."""

    table: Path = Field(description="a .csv or .tsv file with one row per exam; see docs/site.md")

    @field_validator("table")
    @classmethod
    def _known_format(cls, table: Path) -> Path:
        if table.suffix.lower() not in TABLE_SEPARATORS:
            raise ValueError(f"the table is {table.name!r}, expected a file that ends in .csv (commas) or .tsv (tabs)")
        return table


class DisclosureSpec(Settings):
    """What may leave the site. Stricter is a larger `min_…` and a smaller `max_bins`."""

    min_patients: int = Field(default=10, ge=1, description="training patients below which this site takes no part")
    min_cell: int = Field(
        default=5,
        ge=0,
        description="a split with a class of fewer patients than this is evaluated in silence: histograms, confusion "
        "and sums are withheld; the numbers of patients by class and split are always told",
    )
    max_bins: int = Field(
        default=32, ge=8, le=1024, description="finest score histogram that this site shows, 8 to 1024"
    )


class ServerSpec(Settings):
    """How the coordinator is reached."""

    address: str = Field(description="host:port of the coordinator, such as federation.example.org:9092")
    ca_certificate: Path | None = Field(
        default=None, description="PEM file with the certificate that the coordinator is checked against"
    )
    private_key: Path | None = Field(
        default=None,
        description="file with this site's own private key; beside it lies what else belongs to the membership, "
        "so every federation needs a folder of its own",
    )
    federation: str | None = Field(default=None, description="the federation's name; `gliorn-client enroll` writes it")
    federation_id: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{32}$",
        description="32 hexadecimal digits that tell federations of one name apart; `gliorn-client enroll` writes them",
    )
    max_bandwidth_mbit: float | None = Field(
        default=None, gt=0, description="megabits per second that this site sends and receives at most, on average"
    )

    @field_validator("address")
    @classmethod
    def _host_and_port(cls, address: str) -> str:
        host, _, port = address.rpartition(":")
        if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", host) or not (
            port.isascii() and port.isdigit() and 0 < int(port) < 65536
        ):
            raise ValueError(f"address is {address!r}, expected host:port with a port from 1 to 65535")
        return address


class SiteConfig(Settings):
    """Everything one hospital decides for itself. Its name, device kind and threads alone leave it."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="the site's name in the federation: lower-case letters, digits and '-', at most 63",
    )
    data: DataSource
    label_map: dict[str, Annotated[int, Field(ge=0, le=1)]] = Field(
        description="every word of the table's label column with 1 (necrosis) or 0 (recurrence)"
    )
    cache: Path = Field(description="folder for prepared exams; made if it does not exist")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda|cuda:\d{1,2})$",
        description="auto, cpu, cuda or cuda:N",
    )
    torch_threads: int | None = Field(
        default=None, ge=1, le=256, description="threads of torch; absent means torch's own choice"
    )
    disclosure: DisclosureSpec = Field(default_factory=DisclosureSpec)
    studies: tuple[str, ...] = Field(
        default=(),
        description="digests of the studies that this site takes part in, all 64 digits of each; "
        "`gliorn-client accept` is the other way to consent",
    )
    working_hours: tuple[str, ...] | None = Field(
        default=None,
        description="when this site computes, in its local time, such as "
        '["mon-fri 19:00-07:00", "sat,sun 00:00-24:00"]; absent means always',
    )
    server: ServerSpec | None = None

    @field_validator("studies")
    @classmethod
    def _whole_digests(cls, studies: tuple[str, ...]) -> tuple[str, ...]:
        for digest in studies:
            if not re.fullmatch(DIGEST, digest):
                raise ValueError(
                    f"holds {digest[:70]!r} ({len(digest)} characters), expected the whole digest of a study, 64 of "
                    "the digits 0-9 and a-f: two studies with one beginning can be made; copy it from `gliorn-client "
                    "accept` or the invite"
                )
        return studies

    @field_validator("working_hours")
    @classmethod
    def _readable_hours(cls, hours: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if hours is not None:
            parse_working_hours(hours)
        return hours

    @field_validator("label_map")
    @classmethod
    def _both_classes(cls, label_map: dict[str, int]) -> dict[str, int]:
        read_by_yaml = sorted(_YAML_WORDS & label_map.keys())
        if read_by_yaml:
            raise ValueError(
                f"holds the word {read_by_yaml[0]!r}, which YAML also makes of an unquoted yes, no, on, off or ~; "
                "write such words between quotes as they stand in the table"
            )
        missing = {0, 1} - set(label_map.values())
        if missing:
            raise ValueError(
                f"no word is mapped to {' or '.join(str(label) for label in sorted(missing))}; map the words for "
                "necrosis to 1 and for recurrence to 0, also where a word does not occur at this site"
            )
        return label_map

    @model_validator(mode="after")
    def _stripped_words(self) -> "SiteConfig":
        padded = [word for word in self.label_map if word != word.strip() or not word]
        if padded:
            raise ValueError(
                f"label_map holds {padded[0]!r}, expected words without spaces around them; "
                "the table's words are read without them"
            )
        return self


def parse_site_config(text: str, *, origin: str) -> SiteConfig:
    """Read a site configuration from YAML, with paths as they are written.

    Raises:
        ConfigError: All faults at once, each with its line.
    """
    return parse_settings(text, SiteConfig, origin=origin)


def read_site_config(path: Path) -> SiteConfig:
    """Read a site configuration from a file and check the files it names.

    Returns:
        The configuration with absolute paths; relative ones begin at the file's folder.

    Raises:
        ConfigError: The file cannot be read, or all faults of its text, or all faults of the files it names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or error}); name an existing site configuration, "
            "or copy site_configs/example.yaml and fill it in"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    config, faults = _with_absolute_paths(parse_site_config(text, origin=str(path)), path.resolve().parent)
    faults = _faults_of_files(config) | faults
    if faults:
        raise ConfigError(list_of_faults(str(path), [f"{setting}: {fault}" for setting, fault in faults.items()]))
    return config


def fault_of_file(path: Path) -> str | None:
    """Why a path is not an existing file, as in "does not exist"; None if it is one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be looked at ({_reason(error)})"
    if stat.S_ISDIR(mode):
        return "is a folder"
    return None if stat.S_ISREG(mode) else "is not a plain file"


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _with_absolute_paths(config: SiteConfig, folder: Path) -> tuple[SiteConfig, dict[str, str]]:
    """The configuration with absolute paths, and what is wrong with those that cannot be made absolute, by setting."""
    faults = {}

    def absolute(setting: str, path: Path) -> Path:
        try:
            expanded = path.expanduser()
        except RuntimeError:
            faults[setting] = f"{path} begins at a home folder that this machine does not know; write the whole path"
            expanded = path
        return Path(os.path.abspath(folder / expanded))

    server = config.server and config.server.model_copy(
        update={
            name: absolute(f"server.{name}", path)
            for name in ("ca_certificate", "private_key")
            if isinstance(path := getattr(config.server, name), Path)
        }
    )
    table, cache = absolute("data.table", config.data.table), absolute("cache", config.cache)
    return config.model_copy(update={"data": DataSource(table=table), "cache": cache, "server": server}), faults


def _faults_of_files(config: SiteConfig) -> dict[str, str]:
    """What is wrong with the files and the folder that a configuration names, by setting."""
    faults = {}
    named = {"data.table": config.data.table}
    if config.server and config.server.ca_certificate:
        named["server.ca_certificate"] = config.server.ca_certificate
    if config.server and config.server.private_key:
        named["server.private_key"] = config.server.private_key
    for setting, path in named.items():
        fault = fault_of_file(path)
        if fault is not None:
            faults[setting] = f"{path} {fault}; name an existing file, relative to the folder of this one"
        elif not os.access(path, os.R_OK):
            faults[setting] = f"{path} may not be read by this user; grant read access"
    cache_fault = _fault_of_cache(config.cache)
    return faults if cache_fault is None else faults | {"cache": cache_fault}


def _fault_of_cache(cache: Path) -> str | None:
    for nearest in (cache, *cache.parents):
        try:
            mode = nearest.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            return f"{nearest} cannot be looked at ({_reason(error)}); name another folder"
        if not stat.S_ISDIR(mode):
            return f"{nearest} is a file, expected a folder; name another folder"
        if not os.access(nearest, os.W_OK | os.X_OK):
            return f"{nearest} may not be written by this user; grant write access or name another folder"
        return None
    return f"{cache} has no folder that exists above it; name another folder"
