"""How the global state arrives at a site: what it keeps, what it says it lacks, and what it refuses."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import site_memory
from client.download import arrived
from client.site_memory import SiteMemory
from client.trained_names import trained_names
from common.errors import ConfigError, ProtocolError, StateMissingError
from common.model_state import ModelState, state_digest
from common.study import Study, parse_study
from common.tasks import SentState, TrainTask
from common.update_codec import CodedUpdate, Scheme, decode_update, encode_update
from server.downloads import as_sites_have_it
from server.global_state import initial_global_state
from tests.tiny_hospitals import study_text

SCHEMES: tuple[Scheme, ...] = ("fp16_delta", "int8_delta")


def study(download: str) -> Study:
    return parse_study(study_text(communication={"download": download}), origin="the study of this test")


@pytest.fixture
def memory(tmp_path: Path) -> SiteMemory:
    return SiteMemory(tmp_path, run="run", study_digest="0" * 64)


def moved(state: ModelState, names: frozenset[str], *, seed: int) -> ModelState:
    rng = np.random.default_rng(seed)
    return {
        name: array + rng.normal(scale=1e-3, size=array.shape).astype(array.dtype) if name in names else array
        for name, array in state.items()
    }


def task(of: Study, sent: SentState, state: ModelState | None = None) -> TrainTask:
    return TrainTask(
        study=of,
        run="run",
        round=2,
        state={} if state is None else state,
        class_counts=(1, 1),
        class_weights=(1.0, 1.0),
        fedprox_mu=0.0,
        sent=sent,
    )


def difference(of: Study, before: ModelState, *, seed: int = 0) -> tuple[SentState, ModelState]:
    """A coded difference from a state, and the state that it leads to."""
    scheme = of.communication.download
    assert scheme != "fp32"
    names = trained_names(of)
    update, _ = encode_update(moved(before, names, seed=seed), before, scheme, trained=names)
    after = decode_update(update, before, scheme, trained=names)
    return SentState("difference", state_digest(after), state_digest(before), update), after


@pytest.mark.parametrize("download", SCHEMES)
def test_whole_state_is_kept_and_a_difference_leads_on_from_it(download: str, memory: SiteMemory) -> None:
    chosen = study(download)
    first = initial_global_state(chosen)
    whole = SentState("whole", state_digest(first))

    _, held = arrived(task(chosen, whole, first), memory)
    assert held == whole.digest
    sent, after = difference(chosen, first)
    reached, held = arrived(task(chosen, sent), memory)

    assert held == sent.digest == state_digest(reached.state)
    assert all(np.array_equal(reached.state[name], after[name]) for name in after)
    assert memory.read_global(whole.digest) is None


@pytest.mark.parametrize("download", SCHEMES)
def test_difference_that_comes_again_finds_the_state_that_it_led_to(download: str, memory: SiteMemory) -> None:
    chosen = study(download)
    first = initial_global_state(chosen)
    memory.keep_global(first, state_digest(first))
    sent, _ = difference(chosen, first)

    once, again = arrived(task(chosen, sent), memory), arrived(task(chosen, sent), memory)

    assert state_digest(once[0].state) == state_digest(again[0].state)
    assert once[1] == again[1]


def test_site_that_keeps_nothing_says_so(memory: SiteMemory) -> None:
    chosen = study("fp16_delta")
    sent, _ = difference(chosen, initial_global_state(chosen))

    with pytest.raises(StateMissingError):
        arrived(task(chosen, sent), memory)
    with pytest.raises(StateMissingError):
        arrived(task(chosen, SentState("held", sent.digest)), memory)


def test_difference_that_leads_elsewhere_is_no_state(memory: SiteMemory) -> None:
    chosen = study("fp16_delta")
    first = initial_global_state(chosen)
    memory.keep_global(first, state_digest(first))
    sent, _ = difference(chosen, first)

    with pytest.raises(StateMissingError):
        arrived(task(chosen, replace(sent, digest="f" * 64)), memory)
    assert memory.read_global(state_digest(first)) is not None


def test_whole_state_of_another_digest_is_refused(memory: SiteMemory) -> None:
    chosen = study("fp32")

    with pytest.raises(ProtocolError, match="SHA-256"):
        arrived(task(chosen, SentState("whole", "f" * 64), initial_global_state(chosen)), memory)


def test_malformed_code_is_refused_and_what_is_kept_stays(memory: SiteMemory) -> None:
    chosen = study("int8_delta")
    first = initial_global_state(chosen)
    memory.keep_global(first, state_digest(first))
    sent, _ = difference(chosen, first)
    assert sent.update is not None
    name = next(iter(sent.update.scales))
    scales = {**sent.update.scales, name: np.full_like(sent.update.scales[name], np.nan)}

    with pytest.raises(ProtocolError, match=name.replace(".", r"\.")):
        arrived(task(chosen, replace(sent, update=CodedUpdate(sent.update.values, scales))), memory)
    assert memory.read_global(state_digest(first)) is not None


def test_state_that_cannot_be_kept_is_worked_with_and_not_told_of(
    memory: SiteMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, payload: bytes) -> None:
        raise ConfigError(f"{path}: no space left on the device")

    chosen = study("fp16_delta")
    first = initial_global_state(chosen)
    monkeypatch.setattr(site_memory, "write_atomically", full)

    reached, held = arrived(task(chosen, SentState("whole", state_digest(first)), first), memory)

    assert held == ""
    assert state_digest(reached.state) == state_digest(first)


def test_state_of_a_round_is_not_kept_where_states_go_whole(memory: SiteMemory) -> None:
    chosen = study("fp32")
    first = initial_global_state(chosen)

    _, held = arrived(task(chosen, SentState("whole", state_digest(first)), first), memory)

    assert held == ""
    assert memory.read_global(state_digest(first)) is None


def test_differences_are_refused_where_nothing_is_aggregated() -> None:
    text = study_text(communication={"download": "fp16_delta"}, aggregation={"method": "local"})

    with pytest.raises(ConfigError, match=r"communication\.download is fp16_delta, expected fp32"):
        parse_study(text, origin="study.yaml")


@settings(max_examples=15, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), scheme=st.sampled_from(SCHEMES))
def test_coordinator_and_a_site_that_is_sent_differences_alone_never_part(seeds: list[int], scheme: Scheme) -> None:
    """Over any rounds both have the same bytes, and stay as near to what was aggregated as one code of it is."""
    chosen = study(scheme)
    names = trained_names(chosen)
    globally: ModelState = initial_global_state(chosen)
    here = globally
    memory: Mapping[str, ModelState] = {}
    for seed in seeds:
        aggregated = moved(globally, names, seed=seed)
        made, memory = as_sites_have_it(chosen, aggregated, before=globally, memory=memory, trained=names)
        here = decode_update(CodedUpdate(memory["difference"], memory["scales"]), here, scheme, trained=names)
        globally = made
        assert state_digest(here) == state_digest(globally)
        for name in names:
            assert np.abs(globally[name] - aggregated[name]).max() < 1e-4
