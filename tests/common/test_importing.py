"""Imports without a look for garbage in between, and with one afterwards."""

import gc

import pytest

from common.importing import undisturbed_imports


def test_nothing_looks_for_garbage_within_and_all_is_as_before_after() -> None:
    with undisturbed_imports():
        within = gc.isenabled()

    assert (within, gc.isenabled()) == (False, True)


def test_what_was_there_is_not_looked_at_again() -> None:
    before = gc.get_freeze_count()
    kept = [[] for _ in range(1000)]  # type: list[list[int]]

    with undisturbed_imports():
        pass

    assert gc.get_freeze_count() >= before + len(kept)
    gc.unfreeze()


def test_an_import_that_fails_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ModuleNotFoundError), undisturbed_imports():
        import no_such_module  # type: ignore[import-not-found] # noqa: F401

    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with undisturbed_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
