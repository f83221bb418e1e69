"""A FastAPI application behind Watchword: tokens verified in this process, permissions asked at the moment they matter.

With the stack of scripts/up running, and an OAuth client that has the scopes tokens.verify and permissions.check:

    WATCHWORD_TARGET=127.0.0.1:9090 WATCHWORD_ISSUER=http://127.0.0.1:8080 CLIENT_ID=... CLIENT_SECRET=... \\
        .venv/bin/python -m uvicorn docs.examples.fastapi_app:app --port 8000
    curl http://127.0.0.1:8000/invoices/7 -H "authorization: Bearer $TOKEN"
    curl -X POST http://127.0.0.1:8000/invoices/7:pay -H "authorization: Bearer $TOKEN"
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from fastapi import Depends, FastAPI

from watchword import ClientCredentials, Principal, TokenVerifier
from watchword.guards import principal, require
from watchword.guards.asgi import TokenGuard

verifier = TokenVerifier(
    os.environ["WATCHWORD_TARGET"],
    credentials=ClientCredentials(os.environ["CLIENT_ID"], os.environ["CLIENT_SECRET"]),
    issuer=os.environ["WATCHWORD_ISSUER"],
    max_staleness=timedelta(seconds=5),
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Follow the revocations while the application runs."""
    async with verifier:
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(TokenGuard, verifier=verifier)


@app.get("/invoices/{number}")
async def read_invoice(number: int) -> dict[str, str | int]:
    """Anybody with a good token."""
    return {"invoice": number, "reader": principal().subject}


@app.post("/invoices/{number}:pay")
async def pay_invoice(number: int, payer: Principal = Depends(require("invoices.pay"))) -> dict[str, str | int]:  # noqa: B008  (FastAPI's way)
    """Whoever may pay invoices, at this moment."""
    return {"invoice": number, "payer": payer.subject}
