"""`gliorn-client dicom`: shows which DICOM series would be taken, and converts them once that is confirmed."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from client.config import SiteConfig, read_site_config
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from client.sources.dicom_choice import Choice

DICOM = """\
Finds the series of data.dicom, proposes which is T1, T2 and contrast-enhanced T1 by their parameters and descriptions,
and keeps the choice in series.tsv of data.converted, where the column sequence can be edited. Once that is confirmed,
the chosen series are converted into a BIDS folder without identifiers. The DICOM files are never changed, and nothing
leaves this machine."""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser("dicom", help="choose DICOM series and convert them", description=DICOM)
    parser.add_argument("--site", type=Path, required=True, metavar="FILE", help="this hospital's site.yaml")
    parser.add_argument("--yes", action="store_true", help="convert what series.tsv says without asking")
    parser.set_defaults(command=_dicom)


def _dicom(arguments: argparse.Namespace) -> int:
    from client.private_files import make_private_folder
    from client.sources.dicom_choice import choices_for, read_choices, write_choices
    from client.sources.dicom_conversion import convert
    from client.sources.dicom_folder import BIDS_FOLDER, CHOICE_FILE
    from client.sources.dicom_series import find_series, require_dicom_extra

    config = read_site_config(arguments.site)
    source, converted = _folders(config, arguments.site)
    require_dicom_extra()
    choice_file = converted / CHOICE_FILE
    known = read_choices(choice_file)
    series, num_others = find_series(source)
    choices = choices_for(series, known)
    make_private_folder(converted)
    write_choices(choice_file, choices)
    _show(choices)
    if num_others:
        print(f"{num_others} files are no DICOM with PatientID and UIDs and are left out")
    print(f"{choice_file}: kept, for its owner alone; it holds identifiers")
    again = f"gliorn-client dicom --site {arguments.site} --yes"
    if not arguments.yes and not _confirmed():
        print(f"Next: look at the column sequence of {choice_file}, edit it where it is wrong, then {again}")
        return 0
    done = convert(config, series, choices, _show_progress)
    print(
        f"{converted / BIDS_FOLDER}: {done.num_converted} series converted, {done.num_kept} were there already, "
        "no identifier among them"
    )
    if done.num_unlabelled:
        print(f"{done.num_unlabelled} patients are not in data.labels and have no label; add their rows, then {again}")
    print(f"Next: gliorn-client cohort --site {arguments.site}")
    return 0


def _folders(config: SiteConfig, origin: Path) -> tuple[Path, Path]:
    source, converted = config.data.dicom, config.data.converted
    if source is None or converted is None:
        raise ConfigError(f"{origin}: the source is not data.dicom, so there is nothing to convert")
    if converted.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"{origin}: data.converted lies in data.dicom, which is never changed; name another folder")
    return source, converted


def _show(choices: "Sequence[Choice]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = ("sub", "ses", "number", "description", "tr_ms", "te_ms", "ti_ms", "agent", "images", "sequence", "why")
    table = Table(*names)
    for choice in choices:
        table.add_row(*(Text(str(getattr(choice, name))) for name in names))
    Console().print(table)


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return input("Convert the series with a sequence as shown? Type yes: ").strip().lower() == "yes"
    except EOFError:
        return False


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        print(f"\r{done} of {total} series", end="\n" if done == total else "", file=sys.stderr, flush=True)
