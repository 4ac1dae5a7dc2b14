"""What a source says of a patient beside label and images; what is not understood is not known."""

import pytest

from client.traits import Traits, traits_of


@pytest.mark.parametrize(
    ("fields", "traits"),
    [
        pytest.param(
            {"age": "57", "sex": "F", "months_since_radiotherapy": "9.5"}, Traits(57, "female", 9.5), id="all"
        ),
        pytest.param({"age": "89+", "sex": "male"}, Traits(89, "male"), id="as BIDS writes the very old"),
        pytest.param({"sex": "O"}, Traits(sex="other"), id="other"),
        pytest.param({"age": "", "sex": ""}, Traits(), id="empty"),
        pytest.param({"age": "058Y", "sex": "?", "months_since_radiotherapy": "nan"}, Traits(), id="not understood"),
        pytest.param({"age": "-1", "months_since_radiotherapy": "99999"}, Traits(), id="out of range"),
    ],
)
def test_traits_are_read_or_not_known(fields: dict[str, str], traits: Traits) -> None:
    assert traits_of(fields) == traits
