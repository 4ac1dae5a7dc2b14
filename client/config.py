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
SOURCES = ("table", "bids", "datalist", "dicom")
_SOURCES_OF_SETTING = {
    "sheet": ("table",),
    "label_column": ("bids", "dicom"),
    "desc": ("bids",),
    "space": ("bids",),
    "prefer": ("bids",),
    "validation_fold": ("datalist",),
    "one_exam_per_patient": ("datalist",),
    "converted": ("dicom",),
    "labels": ("dicom",),
}


class DataSource(Settings):
    """Where the hospital's exams are listed: exactly one of table, bids, datalist and dicom."""

    table: Path | None = Field(default=None, description="a .csv, .tsv or .xlsx file with one row per exam")
    bids: Path | None = Field(default=None, description="a folder in the layout of BIDS with participants.tsv")
    datalist: Path | None = Field(default=None, description="a JSON file in the form of MONAI or the decathlon")
    dicom: Path | None = Field(default=None, description="a folder of DICOM files; it is read and never changed")
    sheet: str | None = Field(default=None, description="table: sheet of an .xlsx workbook that has several")
    label_column: str = Field(
        default="label", min_length=1, description="bids, dicom: column of participants.tsv or of labels with the label"
    )
    desc: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9]+$", description="bids: take derivatives with this desc, such as preproc"
    )
    space: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9]+$", description="bids: take derivatives in this space"
    )
    prefer: tuple[str, ...] = Field(
        default=(), description="bids: of several files for a sequence, the one with these entities, such as run-2"
    )
    validation_fold: int | None = Field(
        default=None, ge=-1, description="datalist: fold that validates; -1 leaves the folds out of account"
    )
    one_exam_per_patient: bool = Field(
        default=False, description="datalist: whether every entry without patient_id is a patient of its own"
    )
    converted: Path | None = Field(
        default=None, description="dicom: folder of the site's own for the choice of series and the converted exams"
    )
    labels: Path | None = Field(
        default=None, description="dicom: a table with patient_id, as in the DICOM files, and the label"
    )

    @property
    def path(self) -> Path:
        """The file or folder that lists the exams."""
        return next(path for path in (self.table, self.bids, self.datalist, self.dicom) if path is not None)

    @field_validator("table", "labels")
    @classmethod
    def _known_format(cls, table: Path | None) -> Path | None:
        if table is not None and table.suffix.lower() not in (*TABLE_SEPARATORS, ".xlsx"):
            raise ValueError(
                f"the table is {table.name!r}, expected a file that ends in .csv (commas), .tsv (tabs) or .xlsx"
            )
        return table

    @model_validator(mode="after")
    def _one_source(self) -> "DataSource":
        named = [name for name in SOURCES if getattr(self, name) is not None]
        if len(named) != 1:
            found = "none is given" if not named else " and ".join(named) + " are given"
            raise ValueError(f"{found}, expected exactly one of table, bids, datalist and dicom")
        for name, sources in _SOURCES_OF_SETTING.items():
            if getattr(self, name) != DataSource.model_fields[name].default and named[0] not in sources:
                raise ValueError(f"{name} belongs to {' and '.join(sources)}, the source is {named[0]}; delete {name}")
        if self.dicom is not None and (self.converted is None or self.labels is None):
            raise ValueError("dicom needs converted, a folder for the converted exams, and labels, a table of labels")
        return self


class EligibilityRule(Settings):
    """Which exams of the source take no part, and why. First all are screened, then each rule in its turn."""

    column: str = Field(min_length=1, description="column of the source, in a table in lower case")
    exclude: tuple[str, ...] = Field(
        min_length=1, description='words of the column that exclude an exam; "" is an empty field or n/a'
    )
    reason: str = Field(
        min_length=1, max_length=80, description="why, such as never irradiated; counted in the flow of the cohort"
    )

    @field_validator("column")
    @classmethod
    def _lower_case(cls, column: str) -> str:
        return column.strip().lower()


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
    statistics: bool = Field(
        default=False,
        description="whether this site shows statistics of its cohort before training (docs/statistics.md); counts "
        "below min_cell are hidden",
    )
    duplicates: bool = Field(
        default=False,
        description="whether the coordinator may learn how many patients this site has in common with each other site "
        "that agrees, by blinded images (docs/statistics.md)",
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
    eligibility: tuple[EligibilityRule, ...] = Field(
        default=(), description="exams that take no part, with reasons that are counted and stay here"
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


def fault_of_folder(path: Path) -> str | None:
    """Why a path is not a folder that can be listed, as in "does not exist"; None if it is one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be looked at ({_reason(error)})"
    if not stat.S_ISDIR(mode):
        return "is no folder"
    return None if os.access(path, os.R_OK | os.X_OK) else "may not be listed by this user"


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
    data = config.data.model_copy(
        update={
            name: absolute(f"data.{name}", path)
            for name in (*SOURCES, "converted", "labels")
            if isinstance(path := getattr(config.data, name), Path)
        }
    )
    cache = absolute("cache", config.cache)
    return config.model_copy(update={"data": data, "cache": cache, "server": server}), faults


def _faults_of_files(config: SiteConfig) -> dict[str, str]:
    """What is wrong with the files and the folder that a configuration names, by setting."""
    faults = {}
    folders = {"data.bids": config.data.bids, "data.dicom": config.data.dicom}
    for setting, folder in folders.items():
        fault = None if folder is None else fault_of_folder(folder)
        if fault is not None:
            faults[setting] = f"{folder} {fault}; name an existing folder, relative to the folder of this file"
    files = {"data.table": config.data.table, "data.datalist": config.data.datalist, "data.labels": config.data.labels}
    named = {setting: path for setting, path in files.items() if path is not None}
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
