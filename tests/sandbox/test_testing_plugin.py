"""The pytest plugin for users, used as a user would."""

from __future__ import annotations

pytest_plugins = ["pytester"]

USERS_TEST = """
from datetime import timedelta

def test_two_clients_share_the_sandbox(llmrouter_sandbox):
    requests = [{"custom_id": "a", "params": {
        "model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}}]
    batch = llmrouter_sandbox.client().messages.batches.create(requests=requests)
    llmrouter_sandbox.sandbox.clock.advance(timedelta(hours=24))
    other = llmrouter_sandbox.client(max_retries=0)
    assert other.max_retries == 0
    assert str(other.base_url).startswith(llmrouter_sandbox.base_url)
    assert other.messages.batches.retrieve(batch.id).processing_status == "ended"

def test_every_test_has_its_own(llmrouter_sandbox):
    assert llmrouter_sandbox.sandbox.batches == {}
"""


def test_the_plugin_gives_each_test_a_sandbox(pytester):
    pytester.makeini("[pytest]\nfilterwarnings = error")
    pytester.makeconftest('pytest_plugins = ["llmrouter.testing"]')
    pytester.makepyfile(USERS_TEST)
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=2)
