"""Logs: one JSON object a line on standard output, with the request id of the call; constant events, facts in fields, never a secret."""

import logging
import sys
from typing import Any

import structlog

from services.chassis.settings import ChassisSettings

MAX_TEXT = 2000  # characters of one field
_SECRET_NAMES = ("password", "secret", "token", "authorization", "code", "cookie")


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
    for name, value in event.items():
        if any(word in name.lower() for word in _SECRET_NAMES):
            event[name] = "[hidden]"
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            event[name] = value[:MAX_TEXT] + "…"
    return event


class _Forward(logging.Handler):
    """The standard library's records as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(record.levelno, "library_said", logger=record.name, text=record.getMessage(), exc_info=record.exc_info)
