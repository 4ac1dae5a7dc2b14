"""Read a JSON file that somebody else wrote: what every reader understands alike, or a message with the place."""

import json
from pathlib import Path
from typing import NoReturn

from common.errors import ConfigError

MAX_BYTES = 100_000_000


def read_json(path: Path) -> object:
    """The value of a JSON file in UTF-8.

    Raises:
        ConfigError: It cannot be read, is no JSON, gives a name twice, or holds NaN or half a character.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); look at the file") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: is of {len(data)} bytes, expected at most {MAX_BYTES}; name another file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    try:
        value: object = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}: line {error.lineno}, column {error.colno}: not readable as JSON: {error.msg}; mend this line"
        ) from None
    except UnicodeEncodeError:
        raise ConfigError(f"{path}: a text holds half a character (\\ud800 to \\udfff); write whole ones") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply; see docs/data.md for its form") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from None
    return value


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{double[:60]!r} is given twice in one object; keep one")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which is no number of JSON; write null or a number")
