"""A short run of what `benchmarks/queue_chaos.py` does at length."""

from __future__ import annotations

from benchmarks.queue_chaos import rehearse

MESSAGES = 300


def test_what_is_queued_while_workers_and_nodes_are_killed_is_answered_for():
    result = rehearse("SQLite", MESSAGES, every=2.0)
    assert result.is_right, result
    assert result.accepted == MESSAGES
    assert result.sent_once + result.flagged + result.unknown == MESSAGES
    assert result.killed
