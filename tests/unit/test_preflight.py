"""What `scripts/preflight` makes of instances that are not as they must be, and of nobody at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.conftest import free_port
from tests.preflight import preflight


def test_nobody_there_is_no_pass() -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    status, found = preflight(
        "--rest",
        f"http://{nowhere}",
        "--target",
        f"token-1=http://{nowhere}/metrics",
        DATABASE_URL=f"postgresql://u:p@{nowhere}/d",
        REDIS_URL=f"redis://{nowhere}",
    )

    assert status == 1
    assert [found[name][0] for name in ("answering", "postgres", "health", "key set", "guesses")] == ["FAILED"] * 5


@contextmanager
def telling(**instances: str) -> Iterator[list[str]]:
    """Answer for instances with numbers made up; yields the options that name them."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = instances[self.path.strip("/")].encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield [part for name in instances for part in ("--target", f"{name}=http://127.0.0.1:{server.server_port}/{name}")]
    finally:
        server.shutdown()
        server.server_close()


GOOD = (
    'watchword_build_info{context="token",environment="production",version="1"} 1\n'
    'watchword_settings_info{context="token",fingerprint="a"} 1\n'
    'watchword_ready{context="token"} 1\nwatchword_lease_current{context="token"} 1\nwatchword_clock_skew_seconds{context="token"} 0.1\n'
    'watchword_database_connections_max{context="token"} 10\n'
)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("environment", 'environment="production"', 'environment="staging"'),
        ("settings", 'fingerprint="a"', 'fingerprint="b"'),
        ("versions", 'version="1"', 'version="2"'),
        ("ready", 'watchword_ready{context="token"} 1', 'watchword_ready{context="token"} 0'),
        ("leases", 'watchword_lease_current{context="token"} 1', 'watchword_lease_current{context="token"} 0'),
        ("clocks", "} 0.1", "} -3"),
    ],
)
def test_one_instance_that_is_otherwise_is_named(name: str, good: str, bad: str) -> None:
    assert good in GOOD
    with telling(one=GOOD, two=GOOD, three=GOOD.replace(good, bad)) as options:
        _, found = preflight(*options)

    assert found[name][0] == "FAILED"


def test_instances_that_are_all_as_they_must_be_pass() -> None:
    """What was not tried is no pass of the whole."""
    with telling(one=GOOD, two=GOOD, three=GOOD) as options:
        status, found = preflight(*options)

    assert status == 2
    assert {state for state, _ in found.values()} == {"OK", "NOT TRIED", "BY HAND"}
