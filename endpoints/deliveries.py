"""What the API says of a message that was sent, or would be."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from email_services.breakers import Step
from email_services.delivery import Delivery
from email_services.exceptions import SENT, UNKNOWN


def delivery_as_dict(delivery: Delivery) -> dict[str, Any]:
    """What became of a message."""
    tried = {
        "services_unsuccessful": delivery.services_unsuccessful,
        "attempts": [asdict(attempt) for attempt in delivery.attempts],
    }
    if delivery.outcome != SENT:
        return {
            "result": "unknown" if delivery.outcome == UNKNOWN else "error",
            "error": delivery.error,
            "code": delivery.code,
            **tried,
        }
    answer = {
        "result": "partial" if delivery.is_partial else "success",
        "message_id": delivery.message_id,
        "service_used": delivery.service_used,
        "service_message_id": delivery.service_message_id,
        **tried,
        "possible_duplicate": delivery.possible_duplicate,
    }
    if delivery.recipients:
        answer["recipients"] = [asdict(recipient) for recipient in delivery.recipients]
    return answer


def step_as_dict(step: Step) -> dict[str, str]:
    """What would be done with one service."""
    return {"service": step.service.name, "decision": step.decision, "reason": step.reason}
