"""Logs: one JSON object a line on standard output, with the request id of the call; constant events, facts in fields, never a secret."""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

import structlog

from services.chassis.settings import ChassisSettings

MAX_TEXT = 2000  # characters of one field
_SECRET_NAMES = ("password", "secret", "token", "authorization", "code", "cookie")
# Wherever an exception's text may have picked one up: JSON web tokens, our own secrets by their prefixes, passwords in URLs, private keys.
_SECRET_TEXT = re.compile(
    r"eyJ[\w-]+\.[\w-]+\.[\w-]*"
    r"|ww(?:rt|cs)_[\w-]+"
    r"|(?<=://)[^/\s@]*:[^/\s@]*(?=@)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*-----)?"
)


def configure(settings: ChassisSettings, service: str) -> None:
    """Send structlog and the standard library's logs through one pipe."""
    level = getattr(logging, settings.LOG_LEVEL.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
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
