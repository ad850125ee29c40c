"""What waits to be sent: how much, which messages, and what people do with them."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from browsable_api import Asked, Form
from browsable_api.errors import told
from email_services.exceptions import SearchTooSlow, UnknownStream
from email_services.pool import PooledEmailService
from email_services.streams import NAME
from endpoints.access import READING, ROOT
from endpoints.addresses import QUEUE
from endpoints.context import mailpool
from endpoints.messages import (
    MessageInShort,
    QueueDepth,
    Time,
    in_short,
    iso,
    queue_as_dict,
)
from endpoints.rooms import Endpoints, Fields

MOST_SHOWN = 100
"""Messages on the page of what waits; the log has all."""


class StreamFilter(Fields):
    """Which of what waits is wanted, from the query of the URL."""

    stream: str | None = Field(None, description="The stream; without it, all.", pattern=NAME)


class Pause(Fields):
    """What is to become of a stream."""

    stream: str = Field(description="The stream.", pattern=NAME)
    paused: bool = Field(description="Whether nothing more of it is to be sent.")


class WaitingMessage(MessageInShort):
    """A message that waits."""

    stream: Annotated[str, told("What kind of mail it is.")]
    next_try: Annotated[Time, told("When it is tried, or whoever is sending it counts as gone.")]
    tries: Annotated[int, told("How often it was tried.")]


class Queue(TypedDict):
    """What waits to be sent."""

    queue: Annotated[dict[str, QueueDepth], told("How much waits in each stream.")]
    messages: Annotated[list[WaitingMessage], told("The first that are tried.")]


room = Endpoints("queue", __name__, "What waits to be sent, and what to do with it.")


@room.operation("GET", QUEUE, READING, page="queue.html", raises=(SearchTooSlow,))
def get_queue(pool: PooledEmailService, query: StreamFilter) -> Queue:
    """The queue.

    What waits to be sent, by stream: `waiting` could be sent now, `scheduled` is for later,
    `retrying` has been tried. `messages` are the first that will be tried.

    A message that waits can be cancelled (`DELETE` on its address, or `POST` to `/cancel` there) or
    tried at once (`POST` to `/send-now`). A stream can be paused, with the root key: nothing of it
    is sent then, and what is accepted waits.
    """
    found = mailpool.store.waiting(pool.email_domain, stream=query.stream, limit=MOST_SHOWN)
    return {
        "queue": queue_as_dict(pool),
        "messages": [
            {
                **in_short(message),
                "stream": message.stream,
                "next_try": iso(due),
                "tries": tries,
            }
            for message, due, tries in found
        ],
    }


@room.operation(
    "POST",
    QUEUE,
    ROOT,
    form=Form(
        button="",
        fields={
            "paused": Asked("buttons", options={"true": "Pause it", "false": "Let it go on"}),
        },
    ),
    raises=(SearchTooSlow, UnknownStream),
    examples={"pause": {"stream": "bulk", "paused": True}},
)
def pause_stream(pool: PooledEmailService, body: Pause) -> Queue:
    """Pause a stream, or let it go on.

    While it is paused, what is accepted waits. What expires meanwhile is not sent.
    """
    if body.stream not in pool.streams:
        raise UnknownStream(pool.email_domain, body.stream)
    mailpool.store.pause(pool.email_domain, body.stream, time.time(), is_paused=body.paused)
    mailpool.dispatcher.wake(pool.email_domain, body.stream)
    return get_queue(pool, StreamFilter(stream=None))
