"""What a user writes with a client that openapi-python-client made; prints what it got."""

from __future__ import annotations

import base64
import json
import sys

from mailpool_client import AuthenticatedClient
from mailpool_client.api.messages import list_messages
from mailpool_client.api.sending import send_message
from mailpool_client.models import (
    Attachment,
    Batch,
    BatchAnswer,
    EmailMessage,
    Error,
    ListMessagesOutcome,
    Messages,
    Plan,
    Sent,
)

url, key = sys.argv[1:]
mailpool = AuthenticatedClient(base_url=url, token=key, raise_on_unexpected_status=True)
DOMAIN = "example.com"


def hello(subject: str = "Hello") -> EmailMessage:
    return EmailMessage(
        from_email="me@example.com",
        to_recipients=["Ada <ada@example.org>"],
        subject=subject,
        raw_text_body="It works.",
    )


one = send_message.sync(DOMAIN, client=mailpool, body=hello())
assert isinstance(one, Sent), one

letter = hello("A file")
content = base64.b64encode(b"It works.").decode()
letter.attachments = [Attachment(filename="note.txt", content=content)]
with_file = send_message.sync(DOMAIN, client=mailpool, body=letter)
assert isinstance(with_file, Sent), with_file

tried = hello()
tried.to_recipients = ["bob@example.org"]
tried.dry_run = True
batch = send_message.sync(
    DOMAIN,
    client=mailpool,
    body=Batch(messages=[hello(), tried]),
    idempotency_key="a-batch-in-python",
)
assert isinstance(batch, BatchAnswer), batch
sent, plan = batch.results
assert isinstance(sent, Sent), sent
assert isinstance(plan, Plan), plan

wrong = hello("")
wrong.tags = ["é"]
refused = send_message.sync_detailed(DOMAIN, client=mailpool, body=wrong)
assert refused.status_code == 400
assert isinstance(refused.parsed, Error), refused
assert refused.parsed.problems, refused

log = list_messages.sync(
    DOMAIN, client=mailpool, outcome=ListMessagesOutcome.SENT, recipient="ada", limit=10
)
assert isinstance(log, Messages), log

got = {
    "service": one.service_used,
    "file": with_file.service_message_id,
    "batch": [sent.result.value, plan.result],
    "problems": sorted(refused.parsed.problems.to_dict()),
    "subjects": [message.subject for message in log.messages],
}
json.dump(got, sys.stdout)
