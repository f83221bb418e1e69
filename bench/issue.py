"""IssueToken, beside raw RSA signing."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import uuid4

from bench.figures import Bench, Figure, Target, at_least, beside, circumstances
from bench.floor import echoing
from bench.load import write_requests
from bench.material import REVISION
from bench.slices import Load, Sample, Side, Spread, interleaved, raw, service_authorization
from services.chassis.tenancy import DEFAULT_TENANT
from watchword.token.v1 import token_pb2

SUBJECTS = 2_000  # so that sessions of one subject do not wait for one another


async def issue(bench: Bench) -> list[Figure]:
    """Measure access tokens alone, signed together and one by one, and access tokens with the refresh token of a new session."""
    samples = await _samples(bench)
    signing = [sample.rate for sample in samples["raw sign"]]
    # What remains of a core's second if every call is a bare echo and a raw signature, and nothing more.
    reachable = [1e6 / (sign.cost + echo.cost) for sign, echo in zip(samples["raw sign"], samples["echo"], strict=True)]

    def figure(name: str, title: str, other: str, ceiling: Sequence[float], target: Target | None = None) -> Figure:
        own, side = [sample.rate for sample in samples[name]], samples[name]
        return Figure(f"issue.{name} / {other}", title, "/CPU s", Spread.of(own), beside(other, own, ceiling), target, circumstances(side))

    alone, session = "IssueToken, an access token alone", "IssueToken, with a session and its refresh token: one transaction on disk"
    singly = f"{alone}, signed one by one (SIGN_TOGETHER=false, or a processor without AVX-512 IFMA)"
    return [
        Figure("ceiling.sign", "RSA-2048 signing by `cryptography` alone", "/CPU s", Spread.of(signing)),
        figure("alone", f"{alone}, beside signing", "signing", signing, at_least(0.8, of_ratio=True)),
        figure("alone", f"{alone}, beside an echo that signs", "echo and signing", reachable),
        figure("alone.singly", f"{singly}, beside signing", "signing", signing),
        figure("session", f"{session}, beside signing", "signing", signing),
        figure("session", f"{session}, beside an echo that signs", "echo and signing", reachable),
    ]


async def _samples(bench: Bench) -> dict[str, list[Sample]]:
    stack, extent, core = bench.stack, bench.extent, bench.stack.cores.measured
    alone, session = stack.home / "issue.alone", stack.home / "issue.session"
    write_requests(alone, [_request(with_refresh=False) for _ in range(SUBJECTS)])
    write_requests(session, [_request(with_refresh=True) for _ in range(SUBJECTS)])
    async with AsyncExitStack() as running:
        database = await stack.new_database()
        instance = await running.enter_async_context(stack.token(database, redis=3, core=core))
        single = await running.enter_async_context(stack.token(database, redis=3, core=core, SIGN_TOGETHER="false"))
        worker = await running.enter_async_context(stack.worker("bench.load"))
        echo = await running.enter_async_context(echoing(stack, instance, worker, extent.seconds / 2))
        rsa = await running.enter_async_context(stack.worker("bench.raw", str(stack.key_file), measured=True))
        identity = service_authorization(stack.keys, "identity")
        calls = Load(worker, instance, "IssueToken", str(alone), "ACCESS", identity, extent.seconds, variety=SUBJECTS)
        sides: dict[str, Side] = {
            "echo": echo,
            "raw sign": raw(rsa, "sign", extent.seconds / 2),
            "alone": calls,
            "alone.singly": replace(calls, instance=single),
            "session": replace(calls, requests=str(session), expected="ACCESS_AND_REFRESH"),
        }
        return await interleaved(sides, extent.rounds, bench.say)


def _request(*, with_refresh: bool) -> bytes:
    return token_pb2.IssueTokenRequest(
        subject=str(uuid4()),
        tenant_id=str(DEFAULT_TENANT),
        type=token_pb2.PRINCIPAL_TYPE_USER,
        scopes=["account"],
        roles=["accountant", "auditor"],
        acr="pwd",
        with_refresh_token=with_refresh,
        revision=REVISION,
    ).SerializeToString()
