"""Examples for the description of the API; tests send the requests and compare the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_MESSAGE: Final = {
    "from_email": "me@example.com",
    "to_recipients": ["Ada <ada@example.org>"],
    "subject": "Hello",
    "raw_text_body": "It works.",
}

REQUESTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "send": {
        "message": _MESSAGE,
        "with everything": {
            "from_email": "me@example.com",
            "from_name": "Me",
            "to_recipients": "ada@example.org, Bob <bob@example.org>",
            "to_cc": [],
            "reply_to": ["office@example.com"],
            "subject": "Hello {{name}}",
            "raw_text_body": "It works, {{name}}.",
            "html_body": '<p>It works, {{name}}.</p><img src="cid:dot">',
            "attachments": [{"filename": "note.txt", "content": "SXQgd29ya3Mu"}],
            "inline": [
                {
                    "filename": "dot.gif",
                    "content": "R0lGODlhAQABAAAAACwAAAAAAQABAAA=",
                    "content_id": "dot",
                }
            ],
            "headers": {"X-Order": "42"},
            "tags": ["welcome"],
            "metadata": {"order": "42"},
            "substitutions": {"name": "Ada"},
            "on_unknown": "stop",
        },
        "dry run": {**_MESSAGE, "dry_run": True},
        "batch": {
            "messages": [_MESSAGE, {**_MESSAGE, "to_recipients": "bob@example.org"}],
        },
    },
    "send_through": {"message": _MESSAGE},
    "fail": {
        "switch over": {},
        "on": {"simulated_failure": True},
        "some, for a while": {"kind": "rate_limited", "share": 0.1, "minutes": 15},
    },
    "sign_in": {"key": {"key": "YOUR-KEY"}},
}
"""Bodies of requests, by endpoint and name."""

_ATTEMPTS: Final = [
    {
        "service": "primary",
        "outcome": "not sent",
        "code": "unavailable",
        "reason": "HTTP 503.",
        "milliseconds": 212,
    },
    {"service": "backup", "outcome": "sent", "code": "", "reason": "", "milliseconds": 87},
]
_SENT: Final = {
    "result": "success",
    "message_id": "dfd3beeb3f5d4ce7b882ad3ecd669788",
    "service_used": "backup",
    "service_message_id": "<20261124120000.1.abc@example.com>",
    "services_unsuccessful": {"primary": "HTTP 503."},
    "attempts": _ATTEMPTS,
    "possible_duplicate": False,
}

ANSWERS: Final[Mapping[Any, Any]] = {
    "Sent": _SENT,
    "NotSent": {
        "result": "error",
        "error": "The message was not sent: no service could send it.",
        "code": "unavailable",
        "services_unsuccessful": {"primary": "HTTP 503."},
        "attempts": _ATTEMPTS[:1],
    },
    ("NotSent", 422): {
        "result": "error",
        "error": "The message was not sent: no service takes it as it is.",
        "code": "message_refused",
        "services_unsuccessful": {"primary": "It needs an address in to_recipients."},
        "attempts": [
            {
                "service": "primary",
                "outcome": "skipped",
                "code": "cannot_carry",
                "reason": "It needs an address in to_recipients.",
                "milliseconds": 0,
            }
        ],
    },
    "Unknown": {
        "result": "unknown",
        "error": "The message may have been sent: a service took it and did not answer.",
        "code": "unknown_outcome",
        "services_unsuccessful": {"primary": "It did not answer within 10 s."},
        "attempts": [
            {
                "service": "primary",
                "outcome": "unknown",
                "code": "unknown_outcome",
                "reason": "It did not answer within 10 s.",
                "milliseconds": 10_003,
            }
        ],
    },
    "Plan": {
        "result": "dry run",
        "plan": [{"service": "primary", "decision": "try", "reason": ""}],
    },
    "BatchAnswer": {"result": "success", "results": [_SENT]},
    ("BatchAnswer", 207): {
        "result": "mixed",
        "results": [
            _SENT,
            {
                "result": "error",
                "error": "1 problem with what was sent.",
                "problems": {"subject": "Required."},
            },
        ],
    },
    ("BatchAnswer", 503): {
        "result": "error",
        "results": [
            {
                "result": "error",
                "error": "1 problem with what was sent.",
                "problems": {"subject": "Required."},
            }
        ],
    },
    ("Error", 400): {
        "error": "1 problem with what was sent.",
        "problems": {"to_recipients.1": "It should be a string with one email address."},
    },
    ("Error", 401): {"error": "The pool key of this domain is needed."},
    ("Error", 404): {"error": "There is no email domain 'example.org' here."},
    ("Error", 406): {"error": "Only application/json and text/html can be answered."},
    ("Error", 409): {"error": "A request with this Idempotency-Key is in progress."},
    ("Error", 413): {"error": "The body is larger than 37 MB."},
    ("Error", 415): {
        "error": (
            "Send application/json, application/x-www-form-urlencoded or multipart/form-data."
        )
    },
    ("Error", 422): {"error": "This Idempotency-Key was used for another request."},
    ("Error", 500): {"error": "An error of this service; it is in the log."},
    ("Error", 503): {"error": "The state database does not answer."},
    "ServiceFailure": {"service_name": "primary", "simulated_failure_enabled": True},
    "ServiceHealth": {
        "service_name": "primary",
        "health": "resting",
        "health_since": "2026-11-24T12:00:00.000+00:00",
        "health_reason": "HTTP 503.",
        "failures_in_a_row": 5,
        "next_probe": "2026-11-24T12:00:15.000+00:00",
        "last_errors": [{"at": "2026-11-24T12:00:00.000+00:00", "reason": "HTTP 503."}],
    },
    "SessionState": {"signed_in": "example.com", "until": "2026-11-24T13:00:00.000+00:00"},
    "Status": {"status": "ok"},
}
"""Answers, by shape, or by shape and status."""
