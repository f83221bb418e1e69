"""The verifier of programs without an event loop."""

import asyncio
import threading
from datetime import timedelta
from uuid import uuid4

import pytest

from tests.service.watchword.fake import AUDIENCE, CLIENT, ISSUER, OTHER_KEY, QUICK, SUBJECT, FakeSuite, Hands, revocation, token
from watchword import SyncTokenVerifier
from watchword.refusals import KeyUnknown, TokenRefused, TokenRevoked, VerificationStale

ID = str(uuid4())


def sync_verifier(fake: FakeSuite, **options: object) -> SyncTokenVerifier:
    return SyncTokenVerifier(fake.address, credentials=CLIENT, issuer=ISSUER, audience=AUDIENCE, patience=QUICK, **options)


async def test_many_threads_verify_at_once_while_the_feed_goes_on(fake: FakeSuite) -> None:
    """No thread sees half of a change: before the revocation all accept, after it all refuse."""
    text, fresh = token(jti=ID), [token() for _ in range(20)]

    def verify(verifier: SyncTokenVerifier, until: threading.Event) -> int:
        refused = 0
        while not until.is_set():
            for one in (text, *fresh):
                try:
                    verifier.verify(one)
                except TokenRevoked:
                    assert one == text
                    refused += 1
                    until.set()
        return refused

    def run() -> None:
        with sync_verifier(fake, cache_size=8) as verifier:
            assert verifier.verify(text).subject == SUBJECT
            done = [threading.Event() for _ in range(4)]
            threads = [threading.Thread(target=verify, args=(verifier, event)) for event in done]
            for thread in threads:
                thread.start()
            loop.call_soon_threadsafe(lambda: fake.stream.say(revocation("TOKEN", ID), checkpoint=True))
            assert all(event.wait(10) for event in done)
            for thread in threads:
                thread.join(10)
            with pytest.raises(TokenRevoked):
                verifier.check(text)

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(run)


async def test_it_asks_and_refuses_like_the_other(fake: FakeSuite) -> None:
    """Stale: VerifyToken. Stopped: nothing is accepted."""
    hands, text, unknown = Hands(), token(), token(kid="key-9", key=OTHER_KEY)
    fake.verdicts |= {text: "VALID", unknown: "UNKNOWN_KEY"}
    fake.decisions["invoices.pay"] = True

    def run() -> None:
        verifier = sync_verifier(fake, **hands.both)
        verifier.start()
        assert verifier.staleness < timedelta(seconds=5)
        with pytest.raises(KeyUnknown):
            verifier.check(unknown)
        principal = verifier.check(text)
        assert verifier.allows(principal, "invoices.pay")
        fake.greeting, fake.beats = None, False
        hands.ahead = 6.0
        with pytest.raises(VerificationStale):
            verifier.verify(text)
        assert verifier.check(text).subject == SUBJECT
        with pytest.raises(TokenRefused):
            verifier.check("x")
        verifier.stop()
        verifier.stop()
        with pytest.raises(VerificationStale):
            verifier.check(text)

    await asyncio.to_thread(run)
    assert len(fake.verified) == 2
