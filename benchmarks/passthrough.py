"""The yardstick: the least that takes a message and hands it to a provider with Flask and requests.

What one writes who needs no failover, no checks and no keys of callers. Run by `send.py` under the
service's own gunicorn settings.
"""

import os
from types import SimpleNamespace

import requests
from flask import Flask, Response, jsonify, request
from requests.adapters import HTTPAdapter

PROVIDER = os.environ["PROVIDER_URL"]
KEY = os.environ["PROVIDER_KEY"]


class Nothing:
    """What gunicorn.conf.py begins and ends beside the requests; here there is none."""

    def start(self) -> None:
        """Nothing begins."""

    def stop(self) -> None:
        """Nothing ends."""


app = Flask(__name__)
app.extensions["mailpool"] = SimpleNamespace(
    upkeep=Nothing(),
    dispatcher=Nothing(),
    copies=Nothing(),
    config=SimpleNamespace(takes_uploads=False),
    store=None,
)
session = requests.Session()
session.mount(PROVIDER, HTTPAdapter(pool_maxsize=int(os.environ["WEB_THREADS"])))


@app.post("/<email_domain>/mailgun")
def mailgun(email_domain: str) -> Response:
    """Send through Mailgun."""
    message = request.get_json()
    form = {
        "from": message["from_email"],
        "to": message["to_recipients"],
        "subject": message["subject"],
        "text": message["raw_text_body"],
        "html": message["html_body"],
    }
    answer = session.post(
        f"{PROVIDER}/v3/{email_domain}/messages", auth=("api", KEY), data=form, timeout=10
    )
    answer.raise_for_status()
    return jsonify(id=answer.json()["id"])


@app.post("/<email_domain>/sendgrid")
def sendgrid(email_domain: str) -> Response:  # noqa: ARG001 - SendGrid needs no domain
    """Send through SendGrid."""
    message = request.get_json()
    payload = {
        "personalizations": [{"to": [{"email": to} for to in message["to_recipients"]]}],
        "from": {"email": message["from_email"]},
        "subject": message["subject"],
        "content": [
            {"type": "text/plain", "value": message["raw_text_body"]},
            {"type": "text/html", "value": message["html_body"]},
        ],
    }
    answer = session.post(
        f"{PROVIDER}/v3/mail/send",
        headers={"Authorization": f"Bearer {KEY}"},
        json=payload,
        timeout=10,
    )
    answer.raise_for_status()
    return jsonify(id=answer.headers["X-Message-Id"])
