"""Logs: one JSON object a line, whatever is in it, and never a secret."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

CANARIES = [f"canary{number:02}" for number in range(1, 13)]

# A process of its own: structlog is configured once for all of a process.
PROGRAM = """
import logging, sys
import structlog
from services.chassis import telemetry
from services.chassis.call import Caller, CallerKind
from services.chassis.settings import ChassisSettings, Secret, load

settings = load(ChassisSettings, {
    "DATABASE_URL": "postgresql://u:canary01@db/x", "REDIS_URL": "redis://:canary01@c", "SECURITY_SALT": "canary01", "SERVICE_KEY": "canary01",
    "SERVICE_PUBLIC_KEYS": "{}", "INSTANCE_ID": "token-1", "LOG_LEVEL": "info",
})
telemetry.configure(settings, "token")
log = structlog.get_logger()
log.info("settings_read", settings=settings, salt=settings.SECURITY_SALT)
log.info("password_changed", password="canary02", new_password="canary02", old=Secret("canary02"))
log.info("client_made", client_secret="canary03")
log.info("called", authorization="Bearer canary04", headers={"Authorization": "Bearer canary04", "x-request-id": "r"})
log.info("refreshed", refresh_token="canary05", pair=[{"access_token": "canary05"}])
log.info("code_sent", reset_code="canary06")
log.info("browsed", set_cookie="canary07")
log.info("caller_known", caller=Caller(CallerKind.USER, "u", token="canary08"))
try:
    raise ValueError("bad token eyJhbGciOiJSUzI1NiJ9.canary09.canary09 given")
except ValueError:
    log.exception("handler_failed", request_id="r")
logging.getLogger("library").error("no connection to postgresql://user:canary10@db/x or redis://:canary10@cache")
log.info("said", text="wwrt_canary11-x and wwcs_canary11_y")
log.info("key_read", text="-----BEGIN PRIVATE KEY-----\\ncanary12\\n-----END PRIVATE KEY-----\\n")
log.info("injected", text='a\\r\\n{"event": "forged", "level": "info"}\\x1b[2J\\x1b[31m\\u2028\\x00', name="\\u202egnp")
log.info("long", text="x" * 100_000)
log.debug("not_shown", text="x")
"""


def said() -> list[dict[str, Any]]:
    """Run the program; return what each line of its output says."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [canary for canary in CANARIES if canary in done.stdout] == []
    assert not set(done.stdout) & set("\r\0\x1b\u2028\u202e")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_twelve_planted_secrets_are_not_in_the_log_and_every_line_is_one_event() -> None:
    """T17: a log is read by more people, and kept for longer, than any database. Injected line ends forge no event."""
    events = said()

    assert [event["event"] for event in events] == [
        "settings_read",
        "password_changed",
        "client_made",
        "called",
        "refreshed",
        "code_sent",
        "browsed",
        "caller_known",
        "handler_failed",
        "library_said",
        "said",
        "key_read",
        "injected",
        "long",
    ]
    assert all({"service", "instance", "level", "timestamp"} <= set(event) for event in events)
    by_name = {event["event"]: event for event in events}
    assert by_name["called"]["headers"] == {"Authorization": "[hidden]", "x-request-id": "r"}
    assert "ValueError" in by_name["handler_failed"]["exception"]
    assert "forged" in by_name["injected"]["text"]
    assert len(by_name["long"]["text"]) < 2100


def test_the_program_above_plants_every_canary() -> None:
    """The control: a canary that is nowhere is found nowhere."""
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(source.count(canary) >= 1 for canary in CANARIES)
