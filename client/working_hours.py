"""The hours in which a site takes part, such as `mon-fri 19:00-07:00`, in the site's local time."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTES_OF_DAY = 24 * 60
_LOOK_AHEAD = timedelta(days=9)
_FORM = 'expected days and hours such as "mon-fri 19:00-07:00" or "sat,sun 00:00-24:00"'


@dataclass(frozen=True)
class _Window:
    """Days it begins on (0 is Monday) and minutes of the day; it ends on the next day if the end is not later."""

    days: frozenset[int]
    start: int
    end: int

    def holds(self, day: int, minute: int) -> bool:
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        begun_today = day in self.days and minute >= self.start
        begun_yesterday = (day - 1) % 7 in self.days and minute < self.end
        return begun_today or begun_yesterday


@dataclass(frozen=True)
class WorkingHours:
    """When a site is open. A window belongs to the day it begins on and ends at the wall clock's time.

    Attributes:
        windows: Open in any of them.
        zone: The site's time zone; None is the zone of this machine.
    """

    windows: tuple[_Window, ...]
    zone: tzinfo | None = None

    def is_open(self, at: datetime) -> bool:
        """Whether the site takes part at a moment, given with its time zone."""
        local = at.astimezone(self.zone)
        minute = local.hour * 60 + local.minute
        return any(window.holds(local.weekday(), minute) for window in self.windows)

    def next_change(self, at: datetime) -> datetime | None:
        """The first full minute after a moment at which the site opens or closes; None if it never does.

        Looks at every minute, since the clock may jump over an hour, or show it twice.
        """
        now_open = self.is_open(at)
        minute = at.astimezone(UTC).replace(second=0, microsecond=0)
        end = minute + _LOOK_AHEAD
        while minute < end:
            minute += timedelta(minutes=1)
            if self.is_open(minute) != now_open:
                return minute.astimezone(self.zone)
        return None


def parse_working_hours(texts: Sequence[str], *, zone: tzinfo | None = None) -> WorkingHours:
    """Read working hours.

    Args:
        texts: Each holds days (`mon`, `mon-fri`, `fri-mon`, `sat,sun`) and hours (`HH:MM-HH:MM`; the end may be 24:00,
            or earlier than the start, and then is on the next day).
        zone: The site's time zone; None is the zone of this machine.

    Raises:
        ValueError: Says all that is wrong.
    """
    windows: list[_Window] = []
    faults: list[str] = []
    for text in texts:
        try:
            windows.append(_parse_window(text))
        except ValueError as error:
            faults.append(f"{text!r}: {error}")
    if not texts:
        faults.append(f"no hours are given, so this site would never take part; {_FORM}, or leave the setting out")
    if faults:
        raise ValueError("; ".join(faults))
    return WorkingHours(tuple(windows), zone)


def _parse_window(text: str) -> _Window:
    match = re.fullmatch(r"\s*(\S+)\s+(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)\s*", text, re.ASCII)
    if match is None:
        raise ValueError(_FORM)
    start, end = (_minute_of_day(*match.group(first, first + 1)) for first in (2, 4))
    if start == _MINUTES_OF_DAY:
        raise ValueError("begins at 24:00; write 00:00 and the day after")
    if start == end:
        raise ValueError("ends when it begins; write 00:00-24:00 for a whole day")
    return _Window(_parse_days(match.group(1).lower()), start, end)


def _minute_of_day(hour: str, minute: str) -> int:
    value = int(hour) * 60 + int(minute)
    if int(minute) > 59 or value > _MINUTES_OF_DAY:
        raise ValueError(f"{hour}:{minute} is no time of day, expected 00:00 to 24:00")
    return value


def _parse_days(text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        for name in (first, last) if dash else (first,):
            if name not in DAYS:
                raise ValueError(f"{name!r} is no day, expected one of {', '.join(DAYS)}")
        if dash:
            begin, num_days = DAYS.index(first), (DAYS.index(last) - DAYS.index(first)) % 7 + 1
            days |= {(begin + offset) % 7 for offset in range(num_days)}
        else:
            days.add(DAYS.index(first))
    return frozenset(days)
