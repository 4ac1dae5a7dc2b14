"""What a check found: one hit a case, one finding a check."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from client.preflight.registry import CHECKS

Severity = Literal["block", "warn"]


@dataclass(frozen=True)
class Hit:
    """One thing that is wrong with one case.

    Attributes:
        check: Id of the check.
        case: How the case is named to a person at the site; "" where it is about no single case.
        detail: What was found, without the name of the case.
    """

    check: str
    case: str
    detail: str


@dataclass(frozen=True)
class Finding:
    """All hits of one check. Cases stay on this machine.

    Attributes:
        check: Id of the check.
        severity: "block" keeps the site from taking part; "warn" asks a person to look.
        hits: What was found, in the order of the cases.
    """

    check: str
    severity: Severity
    hits: tuple[Hit, ...]

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases concerned, each once. Never leaves the site."""
        return tuple(dict.fromkeys(hit.case for hit in self.hits if hit.case))

    @property
    def meaning(self) -> str:
        """What the check looks for."""
        return CHECKS[self.check].meaning

    @property
    def remedy(self) -> str:
        """What to do, in a sentence."""
        return CHECKS[self.check].remedy

    @property
    def sentence(self) -> str:
        """How many cases, and what was found with the first."""
        first = self.hits[0]
        example = f"{first.case}: {first.detail}" if first.case else first.detail
        count = len(self.cases)
        if count > 1:
            return f"{count} cases, the first {example}"
        more = len(self.hits) - 1
        return example if not more else f"{example}, and {more} more"


def gather(hits: Iterable[Hit]) -> tuple[Finding, ...]:
    """Hits as findings, what blocks first, then in the order of the registry; equal hits count once."""
    by_check: dict[str, list[Hit]] = {}
    for hit in dict.fromkeys(hits):
        by_check.setdefault(hit.check, []).append(hit)
    assert set(by_check) <= set(CHECKS), "every hit names a check of the registry"
    return tuple(
        Finding(check.id, check.severity, tuple(by_check[check.id]))
        for check in sorted(CHECKS.values(), key=lambda check: check.severity)  # "block" before "warn"
        if check.id in by_check
    )
