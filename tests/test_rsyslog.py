"""The log in a real rsyslog, by the file in deploy/."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from servers import ROOT
from test_reload import wait_for

RSYSLOGD = shutil.which("rsyslogd") or shutil.which("/usr/sbin/rsyslogd")
if not RSYSLOGD and "CI" not in os.environ:
    pytest.skip("rsyslog is not installed", allow_module_level=True)

LINES = (
    {"event": "sent", "message": "Said “Grüße” to\nfour", "message_id": "a" * 32},
    {"event": "queued", "message_ids": [f"{number:032x}" for number in range(1000)]},
)
FAILED = "config.json: a start that failed, in <b>no</b> JSON"


def test_each_line_of_the_log_is_taken_with_its_fields_however_long(tmp_path):
    logs, taken = tmp_path / "logs", tmp_path / "taken.json"
    logs.mkdir()
    written = (ROOT / "deploy" / "rsyslog" / "mailpool.conf").read_text()
    for place, here in (("/var/log/mailpool/", f"{logs}/"), ("/var/log/mailpool.json", taken)):
        assert place in written
        written = written.replace(place, str(here))
    config = tmp_path / "rsyslog.conf"
    config.write_text(f'global(workDirectory="{tmp_path}")\n{written}')
    (logs / "web.log").write_text(
        "".join(f"{json.dumps(line)}\n" for line in LINES) + FAILED + "\n"
    )
    command = [RSYSLOGD, "-n", "-f", str(config), "-i", str(tmp_path / "pid")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            wait_for(lambda: taken.exists() and taken.read_text().count("\n") == len(LINES) + 1)
        finally:
            process.terminate()
        assert process.stdout.read() == b"", "it had nothing to say of the file"
    assert [json.loads(line) for line in taken.read_text().splitlines()] == [
        *LINES,
        {"msg": FAILED},
    ]
