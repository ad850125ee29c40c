"""The alerts wake somebody when they should, and speak of metrics that there are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import PLAIN, POOL

FOLDER = Path(__file__).parents[1] / "deploy/prometheus"
RULES = FOLDER / "mailpool.rules.yml"
DASHBOARD = FOLDER.parent / "grafana/mailpool.json"
TESTS = FOLDER / "mailpool.rules.test.yml"


@pytest.fixture
def promtool():
    """Run it; it has to end well."""
    if shutil.which("promtool") is None:
        if os.environ.get("CI"):
            pytest.fail("CI has promtool")
        pytest.skip("there is no promtool")

    def run(*command: str, folder: Path = FOLDER) -> None:
        ended = subprocess.run(
            ["promtool", *command], cwd=folder, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    return run


def test_the_alerts_fire_when_they_should_and_else_do_not(promtool):
    promtool("check", "rules", RULES.name)
    promtool("test", "rules", TESTS.name)


def test_what_the_dashboard_asks_is_prometheus_language(promtool, tmp_path):
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    exprs = [expr.replace("$__rate_interval", "5m").replace("$domain", ".*") for expr in asked]
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(exprs)]
    (tmp_path / "panels.json").write_text(
        json.dumps({"groups": [{"name": "panels", "rules": rules}]})  # which is YAML
    )
    promtool("check", "rules", "panels.json", folder=tmp_path)


def test_every_alert_is_tested_and_in_the_docs():
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    assert alerts == set(re.findall(r"alertname: (\w+)", TESTS.read_text()))
    page = (FOLDER.parents[1] / "docs/operating.md").read_text()
    assert {alert for alert in alerts if f"| `{alert}` |" not in page} == set()


def test_every_metric_that_an_alert_or_the_dashboard_asks_for_is_there(make_app, config):
    client = make_app({**config, "queue_url": "kafka://127.0.0.1:9/mailpool"}).test_client()
    client.post("/example.com/send", json=PLAIN, headers=POOL)
    told = client.get("/metrics").text
    asked = re.findall(r"\b(mailpool_\w+)\b", RULES.read_text() + DASHBOARD.read_text())
    assert {name for name in asked if f"\n{name}" not in told} == set()
