"""Traces for OpenTelemetry: a span for each request, and in it one for each attempt.

As its usual variables say, with the packages of the extra `traces`; where they ask for nothing,
nothing of it is imported. No span holds a key, a recipient, or what is in a message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Final

from email_services.exceptions import SENT

logger = logging.getLogger(__name__)

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PACKAGES: Final = "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"

Told = Callable[[Sequence[object]], None]
"""Takes what became of the messages of an attempt: each an Acceptance or a ProviderError."""

_here: dict[str, Any] = {}
"""trace, propagate, context: OpenTelemetry's modules. provider, tracer: of this process. None of
them where it traces nothing."""

_REQUEST: ContextVar[tuple[Any, Any] | None] = ContextVar("request_span", default=None)


def begin(environment: Mapping[str, str]) -> None:
    """Trace from now on, if that is asked for; in the process that does, after it was forked."""
    if not _is_wanted(environment):
        return
    try:
        # Here, since to import them takes 0.2 s and 10 MB.
        from opentelemetry import context, propagate, trace  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError:
        logger.warning("Nothing is traced: that needs pip install %s.", PACKAGES)
        return
    is_named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    resource = Resource.create({} if is_named else {"service.name": "mailpool"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _here.update(trace=trace, propagate=propagate, context=context, provider=provider)
    _here["tracer"] = provider.get_tracer("mailpool")


def end() -> None:
    """Hand over what there is."""
    if _here:
        _here["provider"].shutdown()
        _here.clear()


def _is_wanted(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    return exporter == "otlp" or (not exporter and any(map(environment.get, ENDPOINTS)))


def begin_request(environ: Mapping[str, Any]) -> str:
    """A request begins; returns the id of its trace in hexadecimal, or "". environ: WSGI's."""
    if not _here:
        return ""
    headers = {
        name[5:].replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    trace, before = _here["trace"], _here["propagate"].extract(headers)
    method = environ["REQUEST_METHOD"]
    span = _here["tracer"].start_span(
        method,
        before,
        trace.SpanKind.SERVER,
        {"http.request.method": method, "mailpool.request_id": headers.get("x-request-id", "")},
    )
    token = _here["context"].attach(trace.set_span_in_context(span, before))
    _REQUEST.set((span, token))
    return f"{span.get_span_context().trace_id:032x}"


def note_request(method: str, route: str, status: int) -> None:
    """What it asked for, and what it is answered. route: the address as it is declared."""
    found = _REQUEST.get()
    if not (_here and found):
        return
    span = found[0]
    span.update_name(f"{method} {route}".strip())
    span.set_attributes({"http.route": route, "http.response.status_code": status})
    if status >= 500:  # noqa: PLR2004 - the server's own fault
        span.set_status(_here["trace"].StatusCode.ERROR)


def end_request() -> None:
    """It is over."""
    found = _REQUEST.get()
    if _here and found:
        span, token = found
        _REQUEST.set(None)
        span.end()
        _here["context"].detach(token)


def attempt(
    email_domain: str, service: str, message_ids: Sequence[str]
) -> AbstractContextManager[Told]:
    """A service is asked meanwhile to take messages; gives what is told what became of them."""
    return _attempt(email_domain, service, message_ids) if _here else _NOTHING


@contextmanager
def _attempt(email_domain: str, service: str, message_ids: Sequence[str]) -> Iterator[Told]:
    attributes = {
        "mailpool.domain": email_domain,
        "mailpool.service": service,
        "mailpool.messages": len(message_ids),
        "mailpool.message_id": message_ids[0],
    }
    with _here["tracer"].start_as_current_span(
        f"attempt {service}",
        kind=_here["trace"].SpanKind.CLIENT,
        attributes=attributes,
        record_exception=False,  # whose text may quote what was sent
        set_status_on_exception=False,
    ) as span:

        def told(results: Sequence[object]) -> None:
            first = results[0]
            outcome = getattr(first, "outcome", SENT)
            span.set_attributes(
                {"mailpool.outcome": outcome, "mailpool.code": getattr(first, "code", "")}
            )
            if outcome != SENT:
                span.set_status(_here["trace"].StatusCode.ERROR)

        yield told


def _tell_nobody(_: Sequence[object]) -> None:
    pass


_NOTHING: Final[AbstractContextManager[Told]] = nullcontext(_tell_nobody)


def carried() -> Mapping[str, str]:
    """The headers by which a provider could go on with the trace."""
    headers: dict[str, str] = {}
    if _here:
        _here["propagate"].inject(headers)
        headers.pop("baggage", None)  # whatever a caller has put there is not for providers
    return headers
