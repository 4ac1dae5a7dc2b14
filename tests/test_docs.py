"""What the pages say about settings and files is what the program does."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from client.cli import command_line as client_parser
from client.config import SiteConfig
from common.study import Study, parse_study
from server.cli import command_line as server_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and description of every setting, nested ones with dots."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings_of(inner, f"{prefix}{name}.")
        elif field.description:
            yield f"{prefix}{name}", field.description


def names_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Name of every setting, nested ones with dots, optional sections included."""
    for name, field in model.model_fields.items():
        candidates = [field.annotation, *get_args(field.annotation)]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            yield f"{prefix}{name}"
        else:
            yield from names_of(inner, f"{prefix}{name}.")


def test_every_setting_of_a_study_stands_on_its_page() -> None:
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")

    missing = [name for name, description in settings_of(Study) if f"| `{name}` | {description} |" not in page]

    assert missing == []


def test_every_setting_of_a_site_stands_on_its_page() -> None:
    page = (ROOT / "docs" / "site.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in page.splitlines() if line.startswith("| `"))

    missing = [
        name for name in names_of(SiteConfig) if f"`{name}`" not in table and f"`.{name.split('.')[-1]}`" not in table
    ]

    assert missing == []


@pytest.mark.parametrize("unit", ["gliorn-server.service", "gliorn-client.service"])
def test_units_start_commands_that_exist_and_start_them_again(unit: str) -> None:
    text = (ROOT / "docs" / "deploy" / unit).read_text(encoding="utf-8")
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    program, *arguments = settings["ExecStart"].split()
    parser = {"gliorn-server": server_parser, "gliorn-client": client_parser}[Path(program).name]()

    parser.parse_args(arguments)
    assert (settings["Restart"], settings["KillMode"]) == ("always", "mixed")
    assert "User" not in settings


def test_compose_file_starts_the_same_commands() -> None:
    services = yaml.safe_load((ROOT / "docs" / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]

    server_parser().parse_args(services["coordinator"]["command"].split()[1:])
    client_parser().parse_args(services["site"]["command"].split()[1:])
    assert all(service["init"] and service["restart"] == "always" for service in services.values())


def test_the_demo_study_is_a_sound_study() -> None:
    text = (ROOT / "simulations" / "demo_study.yaml").read_text(encoding="utf-8")

    study = parse_study(text, origin="demo_study.yaml")

    assert study.training.fedprox_mu == 0, "the demo is FedAvg"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))

    assert [target for target in targets if not (page.parent / target).exists()] == []
