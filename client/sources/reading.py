"""Read whatever source a site names, with all faults side by side; nothing is raised before everything is looked at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.config import DataSource, SiteConfig
from client.exam import SEQUENCES, Exam, Exclusion, Faults, exams_of
from client.sources.bids import bids_source
from client.sources.datalist import datalist_source
from client.sources.dicom_folder import BIDS_FOLDER
from client.table import table_exams
from common.errors import ConfigError, DataError, list_of_faults
from common.study import Study


@dataclass(frozen=True)
class SourceFault:
    """One thing that is wrong.

    Attributes:
        kind: `written`: in what the source says; `files`: a file that it names is not there.
        text: Where, what was found, what was expected, what to do. For the eyes of the site alone.
    """

    kind: Literal["written", "files"]
    text: str


@dataclass(frozen=True)
class SourceReading:
    """All that a source gives.

    Attributes:
        path: The file or folder.
        exams: The exams without a fault, sorted by patient and exam identifier.
        excluded: The exams that a rule of eligibility keeps out, sorted alike.
        faults: All that is wrong.
        unreadable: The message where nothing could be read of the source at all; it is the only fault then.
    """

    path: Path
    exams: tuple[Exam, ...]
    excluded: tuple[Exclusion, ...]
    faults: tuple[SourceFault, ...]
    unreadable: str = ""

    def raise_if_faulty(self) -> None:
        """Tell all faults at once.

        Raises:
            ConfigError: If any is in what the source says.
            DataError: If the source is sound and files that it names are not there.
        """
        if self.unreadable:
            raise ConfigError(self.unreadable)
        written = [fault.text for fault in self.faults if fault.kind == "written"]
        Faults(written, [fault.text for fault in self.faults if fault.kind == "files"]).raise_if_any(self.path)


def read_source(config: SiteConfig, study: Study | None) -> SourceReading:
    """Read the exams of the source that a site's configuration names.

    Args:
        config: The site's own settings.
        study: Its order of sequences is the order of a datalist's images; t1, t2, t1ce without a study.
    """
    faults = Faults()
    path = config.data.path
    try:
        exams, excluded = _read(config, study, faults)
    except (ConfigError, DataError) as error:
        text = str(error)
        return SourceReading(path, (), (), (SourceFault("written", text),), unreadable=text)
    written = [SourceFault("written", text) for text in faults.written]
    return SourceReading(path, exams, excluded, tuple(written + [SourceFault("files", text) for text in faults.files]))


def _read(config: SiteConfig, study: Study | None, faults: Faults) -> tuple[tuple[Exam, ...], tuple[Exclusion, ...]]:
    data = config.data
    if data.table is not None:
        return table_exams(data.table, config.label_map, config.eligibility, faults, sheet=data.sheet)
    if data.datalist is not None:
        source = datalist_source(data, study.sequences if study else SEQUENCES, faults)
    elif data.bids is not None:
        source = bids_source(data, faults)
    else:
        source = bids_source(_converted(data), faults)
    return exams_of(source, config.label_map, config.eligibility, faults)


def _converted(data: DataSource) -> DataSource:
    """The folder that DICOM files were converted into, as a source of its own."""
    assert data.converted is not None
    folder = data.converted / BIDS_FOLDER
    if not (folder / "participants.tsv").is_file():
        fault = "holds no converted exams yet; choose the series and convert them by `gliorn-client dicom`"
        raise ConfigError(list_of_faults(str(data.converted), [fault]))
    return DataSource(bids=folder, label_column=data.label_column)
