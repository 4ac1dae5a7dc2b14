"""What holds for all tests: one torch thread, so that bytes are the same everywhere, and no test that passes unrun."""

import os
from collections.abc import Generator

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, also in the processes that tests start

import pytest
import torch

_PROXIES = "tests/server/test_gateway_proxies.py"
ALLOWED_SKIPS: frozenset[str] = frozenset(
    f"{_PROXIES}::{test}[{proxy}]"
    for test in (
        "test_proxy_passes_the_coordinator_s_name_on_unopened",
        "test_proxy_passes_nothing_else_on_to_the_gateway",
    )
    for proxy in ("nginx", "haproxy")
)
"""Tests (node ids) that may be skipped: those of other people's programs that pip does not install."""


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.nodeid not in ALLOWED_SKIPS:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped; make it run, or name it in ALLOWED_SKIPS of tests/conftest.py"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and collector.nodeid not in ALLOWED_SKIPS:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped while it was collected; make it run"
    return report
