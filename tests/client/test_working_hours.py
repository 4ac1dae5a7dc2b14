"""When a site takes part: reading the hours, weekends, nights over midnight, and clocks that jump."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.config import parse_site_config
from client.working_hours import DAYS, parse_working_hours
from common.errors import ConfigError

BERLIN = ZoneInfo("Europe/Berlin")
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
minutes = st.integers(0, 24 * 60)


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """A moment of the week of MONDAY, in UTC; day 0 is Monday."""
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("hours", "moment", "is_open"),
    [
        pytest.param(["mon-fri 19:00-07:00"], at(0, 19), True, id="the first minute"),
        pytest.param(["mon-fri 19:00-07:00"], at(0, 18, 59), False, id="the minute before"),
        pytest.param(["mon-fri 19:00-07:00"], at(1, 6, 59), True, id="the last minute, past midnight"),
        pytest.param(["mon-fri 19:00-07:00"], at(1, 7), False, id="the end is outside"),
        pytest.param(["mon-fri 19:00-07:00"], at(5, 3), True, id="friday's night reaches into saturday"),
        pytest.param(["mon-fri 19:00-07:00"], at(0, 3), False, id="sunday has no night"),
        pytest.param(["sun 22:00-02:00"], at(0, 1), True, id="sunday's night reaches into monday"),
        pytest.param(["fri-mon 00:00-24:00"], at(6, 23, 59), True, id="days over the end of the week"),
        pytest.param(["fri-mon 00:00-24:00"], at(1, 0), False, id="the day after"),
        pytest.param(["SAT,sun 8:00-9:30", "wed 12:00-13:00"], at(2, 12, 30), True, id="several windows"),
    ],
)
def test_site_is_open_in_its_hours_alone(hours: list[str], moment: datetime, is_open: bool) -> None:
    assert parse_working_hours(hours, zone=UTC).is_open(moment) is is_open


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("nights", "expected days and hours such as", id="no hours"),
        pytest.param("frei 10:00-11:00", "'frei' is no day, expected one of mon, tue", id="no day"),
        pytest.param("mon-fri 19:00-24:01", "24:01 is no time of day", id="past midnight"),
        pytest.param("mon 07:60-08:00", "07:60 is no time of day", id="no minute"),
        pytest.param("mon 24:00-08:00", "begins at 24:00", id="begins at the end"),
        pytest.param("mon 08:00-08:00", "ends when it begins", id="empty"),
        pytest.param("mon 8-17", "expected days and hours such as", id="no minutes"),
    ],
)
def test_hours_that_cannot_be_read_are_told_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_working_hours([text])


def test_all_faulty_hours_are_told_at_once_with_the_site_s_other_faults() -> None:
    text = 'name: a\nworking_hours: ["mon 8-17", "day 10:00-11:00"]\ncache: c\nlabel_map: {a: 0, b: 1}\n'

    with pytest.raises(ConfigError) as caught:
        parse_site_config(text, origin="site.yaml")

    assert "'mon 8-17'" in str(caught.value)
    assert "'day' is no day" in str(caught.value)
    assert "'data' is missing" in str(caught.value)


def test_no_hours_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="would never take part"):
        parse_working_hours([])


@given(
    first=st.sampled_from(DAYS), last=st.sampled_from(DAYS), start=minutes, end=minutes, minute=st.integers(0, 10079)
)
def test_hours_hold_for_each_minute_of_the_week_what_they_say(
    first: str, last: str, start: int, end: int, minute: int
) -> None:
    if start in (end, 24 * 60):
        return
    text = f"{first}-{last} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    hours = parse_working_hours([text], zone=UTC)
    days = [(DAYS.index(first) + n) % 7 for n in range((DAYS.index(last) - DAYS.index(first)) % 7 + 1)]
    length = (end - start) % (24 * 60) or 24 * 60

    is_open = hours.is_open(MONDAY + timedelta(minutes=minute))

    assert is_open == any((minute - (day * 24 * 60 + start)) % (7 * 24 * 60) < length for day in days)


@given(moment=st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)), zone=st.sampled_from([UTC, BERLIN]))
def test_next_change_is_the_first_minute_at_which_the_site_is_otherwise(moment: datetime, zone: ZoneInfo) -> None:
    hours = parse_working_hours(["mon-fri 22:00-02:30", "sun 02:15-03:10"], zone=zone)
    start = moment.replace(tzinfo=UTC)

    change = hours.next_change(start)

    assert change is not None
    assert hours.is_open(change) != hours.is_open(start)
    assert hours.is_open(change - timedelta(minutes=1)) == hours.is_open(start)
    assert start < change <= start + timedelta(days=9)


def test_site_that_is_always_open_never_changes() -> None:
    hours = parse_working_hours(["mon-sun 00:00-24:00"], zone=BERLIN)

    assert hours.next_change(MONDAY) is None


def test_hours_that_the_clock_jumps_over_are_not_there() -> None:
    hours = parse_working_hours(["sun 02:15-02:45"], zone=BERLIN)
    before = datetime(2026, 3, 29, 1, 59, tzinfo=BERLIN)  # a minute before 03:00 of summer time

    assert hours.next_change(before) == datetime(2026, 4, 5, 2, 15, tzinfo=BERLIN)


def test_hours_that_begin_in_the_hour_that_is_left_out_begin_after_it() -> None:
    hours = parse_working_hours(["sun 02:15-05:00"], zone=BERLIN)

    change = hours.next_change(datetime(2026, 3, 29, 0, 0, tzinfo=UTC))

    assert change == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)  # 03:00 of summer time, the first minute past 02:15


def test_hours_that_the_clock_shows_twice_are_there_twice() -> None:
    hours = parse_working_hours(["sun 02:15-02:45"], zone=BERLIN)
    start, changes = datetime(2026, 10, 25, 0, 0, tzinfo=UTC), []
    for _ in range(4):
        change = hours.next_change(start)
        assert change is not None
        changes.append(change.astimezone(UTC).strftime("%H:%M"))
        start = change

    assert changes == ["00:15", "00:45", "01:15", "01:45"]
