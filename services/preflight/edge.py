"""What somebody sees who comes through the balancer: health, the key set, a revocation that bites, guesses that are counted."""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from services.preflight.findings import Finding, State, judged

PATIENCE = 10.0  # seconds
GUESSES = 12  # ten may fail
ASKED = 30  # times that a token is asked about, so that every instance is

HEALTH = ("/health/live", "/health/ready", "/health/detailed")
JSON, FORM = "application/json", "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Client:
    """An OAuth client with the scope tokens.verify."""

    id: str
    secret: str = field(repr=False)

    @property
    def basic(self) -> str:
        """RFC 6749 section 2.3.1."""
        return "Basic " + base64.b64encode(f"{self.id}:{self.secret}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer over HTTP; status 0 is none at all."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body, or nothing if it is no JSON object."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Edge:
    """The REST listener behind its balancer."""

    url: str

    async def checked(self) -> AsyncIterator[Finding]:
        """Yield what everybody may see."""
        yield judged(
            "tls",
            good=self.url.startswith("https://"),
            words="as the certificate says" if self.url.startswith("https://") else f"{self.url} is not https",
        )
        statuses = {path: (await self._ask(path)).status for path in HEALTH}
        wrong = [f"{path} {status or 'no answer'}" for path, status in statuses.items() if status != 200]
        yield judged("health", good=not wrong, words=", ".join(wrong) or ", ".join(HEALTH))
        keys = await self._ask("/.well-known/jwks.json")
        may_keep = next((value for name, value in keys.headers.items() if name.lower() == "cache-control"), "")
        good = keys.status == 200 and bool(keys.json.get("keys")) and "max-age" in may_keep
        yield judged("key set", good=good, words=f"status {keys.status}, {len(keys.json.get('keys', []))} keys, Cache-Control: {may_keep or 'none'}")

    async def guessed(self) -> Finding:
        """Guess the password of somebody who does not exist until that is refused, whichever instance is asked."""
        who = json.dumps({"login": f"preflight-{secrets.token_hex(8)}@example.invalid", "password": "a guess"}).encode()
        statuses = [(await self._ask("/v1/auth/login", who, JSON)).status for _ in range(GUESSES)]
        words = f"{statuses.count(401)} of {GUESSES} guesses compared, {statuses.count(429)} refused"
        return judged(
            "guesses", good=set(statuses) == {401, 429} and statuses[-1] == 429, words=words, otherwise="wrong passwords are not counted together"
        )

    async def revoked(self, client: Client | None) -> Finding:
        """Revoke a token, and ask about it at once as often as every instance will be asked."""
        if client is None:
            return Finding(State.NOT_TRIED, "revocation", "set CLIENT_ID and CLIENT_SECRET of an OAuth client with the scope tokens.verify")
        asker, token = [await self._token(client) for _ in range(2)]
        if not asker or not token:
            return Finding(State.FAILED, "revocation", "CLIENT_ID and CLIENT_SECRET get no token with the scope tokens.verify")
        before = await asyncio.gather(*(self._verified(token, asker) for _ in range(ASKED)))
        revoked = await self._ask("/oauth2/revoke", urlencode({"token": token}).encode(), FORM, client.basic)
        after = await asyncio.gather(*(self._verified(token, asker) for _ in range(ASKED)))
        words = f"{before.count('VALID')} of {ASKED} VALID before, {after.count('REVOKED')} of {ASKED} REVOKED after"
        good = revoked.status == 200 and set(before) == {"VALID"} and set(after) == {"REVOKED"}
        return judged("revocation", good=good, words=words)

    async def _token(self, client: Client) -> str:
        form = urlencode({"grant_type": "client_credentials", "scope": "tokens.verify"}).encode()
        return str((await self._ask("/oauth2/token", form, FORM, client.basic)).json.get("access_token", ""))

    async def _verified(self, token: str, asker: str) -> str:
        answer = await self._ask("/v1/tokens:verify", json.dumps({"token": token}).encode(), JSON, f"Bearer {asker}")
        return str(answer.json.get("status", answer.status))

    async def _ask(self, path: str, body: bytes | None = None, kind: str = "", authorization: str = "") -> Answer:
        headers = {name: value for name, value in (("content-type", kind), ("authorization", authorization)) if value}
        request = Request(self.url.rstrip("/") + path, data=body, headers=headers)  # noqa: S310  (the command line names http or https only)
        return await asyncio.to_thread(_answer, request)


def _answer(request: Request) -> Answer:
    try:
        with urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            return Answer(answer.status, dict(answer.headers), answer.read())
    except HTTPError as refusal:
        return Answer(refusal.code, dict(refusal.headers), refusal.read())
    except (OSError, HTTPException):
        return Answer(0, {}, b"")
