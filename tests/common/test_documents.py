"""Reading of YAML into settings: whatever the text is, it is read or refused in words, never by a traceback."""

from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from common.documents import Settings, parse_settings
from common.errors import ConfigError


class Inner(Settings):
    number: float = Field(gt=0, description="a number above 0")


class Outer(Settings):
    name: str = Field(description="a name")
    inner: Inner | None = Field(default=None, description="more")
    pair: tuple[int, int] = Field(default=(1, 2), description="two whole numbers")


def read(text: str) -> Outer | str:
    try:
        return parse_settings(text, Outer, origin="a file")
    except ConfigError as error:
        return str(error)


def test_numbers_may_be_written_with_an_exponent_alone() -> None:
    assert read("name: a\ninner: {number: 1e-3}") == Outer(name="a", inner=Inner(number=0.001))
    assert read("name: a\ninner: {number: 2E4}") == Outer(name="a", inner=Inner(number=20000.0))


def test_text_that_looks_like_a_number_stays_a_text_between_quotes() -> None:
    assert read('name: "007"') == Outer(name="007")
    assert "found 7" in str(read("name: 7"))


def test_fault_inside_an_optional_section_is_placed_there() -> None:
    message = str(read("name: a\ninner:\n  nummer: 1\n"))

    assert "line 3: unknown setting 'inner.nummer'; did you mean 'number'?" in message
    assert "line 2: setting 'inner.number' is missing; add it (a number above 0)" in message


def test_fault_inside_a_list_is_placed_on_its_line() -> None:
    assert "line 4: pair.1: found 'b', input should be a valid integer" in str(read("name: a\npair:\n- 1\n- b\n"))


def test_long_value_is_shortened_in_the_message() -> None:
    message = str(read(f"name: a\npair: {'x' * 1000}"))

    assert "xxx..." in message
    assert len(message) < 300


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    result = read(text)

    assert isinstance(result, Outer) or result.startswith("a file: ")


YAML_PIECES = st.lists(
    st.sampled_from(
        ["name", "inner", "number", "pair", ": ", "\n", "  ", "- ", "[", "]", "{", "}", "&a ", "*a", "!!", "int ", "'"]
        + ["1", "1e3", ".nan", "~", "yes", "2020-01-01", '"', "? ", "<<", ", ", "#", "|", ">", "%", "---\n", "\t"]
    ),
    max_size=14,
).map("".join)


@given(YAML_PIECES)
def test_any_jumble_of_yaml_is_read_or_refused_in_words(text: str) -> None:
    result = read(text)

    assert isinstance(result, Outer) or result.startswith("a file: ")
