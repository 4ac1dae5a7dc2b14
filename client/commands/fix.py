"""`gliorn-client fix`: the safe remedies of the preflight, into a new folder."""

import argparse
from pathlib import Path

from client.commands.check import exam_progress
from client.config import read_site_config

FIX = """\
Copies this site's exams to a new folder and does what is safe on the way: fresh headers without free text or
extensions, gzip without a name, a fourth axis of length 1 taken off, arrays turned to right, front and up, files named
after identifiers. The originals are only read. Exams with a fault that no safe remedy mends are left out and listed.
The new folder has a table.tsv, a site.yaml that points at it, and fixes.json, which says what was done; all of it names
patients and stays at this hospital."""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser("fix", help="mend what is safe to mend, in a copy", description=FIX)
    parser.add_argument("--site", type=Path, required=True, metavar="FILE", help="this hospital's site.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--workers", type=int, metavar="N", help="exams worked on side by side (all cores)")
    parser.set_defaults(command=_fix)


def _fix(arguments: argparse.Namespace) -> int:
    from client.preflight.fix import fix_site, remedies_shown, require_new
    from client.preflight.run import run_preflight
    from client.preflight.workers import num_workers

    config = read_site_config(arguments.site)
    require_new(arguments.out, config.data.path.parent)
    with exam_progress("exams checked") as on_exam:
        preflight = run_preflight(config, None, workers=num_workers(arguments.workers), on_exam=on_exam)
    fixed = fix_site(preflight, config, arguments.site, arguments.out)
    for line in remedies_shown(fixed):
        print(line)
    print(f"{arguments.out}: table.tsv, site.yaml, exams, and fixes.json, which says what was done")
    print(f"Next: gliorn-client check --site {fixed.site_config} --data-only")
    return 0
