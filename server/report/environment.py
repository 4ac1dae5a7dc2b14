"""How the pages that are made here are filled in: every text is escaped, and a name without a value is an error."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

PACKAGE = "server.report"


def page_environment(*packages: str) -> Environment:
    """Templates of the report and, before them, those of other packages.

    Args:
        packages: Each with a folder `templates`.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, PACKAGE)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
