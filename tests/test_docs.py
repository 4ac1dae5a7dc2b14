"""What the pages say about settings and files is what the program does."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from common.study import Study, parse_study

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


def test_every_setting_of_a_study_stands_on_its_page() -> None:
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")

    missing = [name for name, description in settings_of(Study) if f"| `{name}` | {description} |" not in page]

    assert missing == []


def test_the_demo_study_is_a_sound_study() -> None:
    text = (ROOT / "simulations" / "demo_study.yaml").read_text(encoding="utf-8")

    study = parse_study(text, origin="demo_study.yaml")

    assert study.training.fedprox_mu == 0, "the demo is FedAvg"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))

    assert [target for target in targets if not (page.parent / target).exists()] == []
