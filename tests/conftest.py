"""What the whole suite shares: in CI, a test that is skipped is a test that is missing."""

from __future__ import annotations

import os

import pytest

pytest.register_assert_rewrite("conformance")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a run in CI in which anything was skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and os.environ.get("CI") and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
