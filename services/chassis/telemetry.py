"""Logs: one JSON object a line on standard output, with the request id of the call; constant events, facts in fields, never a secret.

With OTEL_EXPORTER_OTLP_ENDPOINT set, spans too (tracing.py), and their ids in every line.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from services.chassis.settings import ChassisSettings

if TYPE_CHECKING:
    from services.chassis.tracing import Tracing

MAX_TEXT = 2000  # characters of one field
_SECRET_NAMES = ("password", "secret", "token", "authorization", "code", "cookie")
# Wherever an exception's text may have picked one up: JSON web tokens, our own secrets by their prefixes, passwords in URLs, private keys.
_SECRET_TEXT = re.compile(
    r"eyJ[\w-]+\.[\w-]+\.[\w-]*"
    r"|ww(?:rt|cs)_[\w-]+"
    r"|(?<=://)[^/\s@]*:[^/\s@]*(?=@)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*-----)?"
)


class Spans:
    """This process's spans; none unless an endpoint is set."""

    tracing: "Tracing | None" = None


def configure(settings: ChassisSettings, service: str) -> None:
    """Send structlog and the standard library's logs through one pipe, and spans to where the settings say."""
    level = getattr(logging, settings.LOG_LEVEL.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *_traced(settings, service),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact,
            structlog.processors.JSONRenderer() if settings.LOG_FORMAT == "json" else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service, instance=settings.INSTANCE_ID)
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)


def _traced(settings: ChassisSettings, service: str) -> list[structlog.types.Processor]:
    """Begin to trace if there is an endpoint; return what adds the ids of spans to events."""
    if not settings.OTEL_EXPORTER_OTLP_ENDPOINT:
        return []
    from services.chassis import tracing  # noqa: PLC0415  (its libraries are not for those who do not ask for them)

    Spans.tracing = tracing.Tracing.begin(settings, service)
    return [tracing.present]


def request_id() -> str:
    """Return the id of the request that is served here and now, or nothing."""
    return str(structlog.contextvars.get_contextvars().get("request_id", ""))


def end() -> None:
    """Send the spans that are left. Waits, a few seconds at most."""
    if Spans.tracing is not None:
        Spans.tracing.end()


def _redact(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Hide what looks like a secret and cut what is long: the belt to the braces of not logging secrets at all."""
    return {name: _safe(str(name), value) for name, value in event.items()}


def _safe(name: str, value: Any) -> Any:
    if any(word in name.lower() for word in _SECRET_NAMES):
        return "[hidden]"
    if isinstance(value, Mapping):
        return {str(key): _safe(str(key), member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_safe("", member) for member in value]
    if not isinstance(value, str):
        return value
    text = _SECRET_TEXT.sub("[hidden]", value)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


class _Forward(logging.Handler):
    """The standard library's records as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(record.levelno, "library_said", logger=record.name, text=record.getMessage(), exc_info=record.exc_info)
