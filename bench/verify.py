"""VerifyToken and BatchVerifyTokens, beside the bare echo and beside raw RSA verification."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from bench.figures import Bench, Figure, at_least, at_most, beside, circumstances
from bench.floor import echoing, question, same_echo_as_service
from bench.load import write_requests
from bench.slices import Load, Sample, Side, Spread, interleaved, raw, service_authorization
from bench.stack import lease_state
from bench.tokens import fresh_tokens
from watchword.token.v1 import token_pb2

BATCH = 100
BATCHES_AT_ONCE = 4


async def verify(bench: Bench) -> list[Figure]:
    """Measure single verifications: one token again and again, and tokens that no server has seen."""
    samples, leases = await _verify_samples(bench)
    echo = samples["echo"]

    def figure(name: str, title: str, bound: float | None) -> Figure:
        costs = [sample.cost for sample in samples[name]]
        floor = beside("echo", costs, [sample.cost for sample in echo])
        target = None if bound is None else at_most(bound, of_ratio=True)
        return Figure(f"verify.{name}", title, "µs/call", Spread.of(costs), floor, target, (*circumstances(samples[name], echo), leases))

    def floor(name: str, title: str) -> Figure:
        return Figure(f"floor.{name}", title, "µs/call", Spread.of([sample.cost for sample in samples[name]]), notes=circumstances(samples[name]))

    return [
        floor("echo", "bare grpc.aio echo of VerifyToken's messages"),
        floor("echo.as-service", "the same echo, on the event loop and the threads of our services"),
        figure("repeated", "VerifyToken, one token repeated, asked by a client", 1.25),
        figure("repeated.service", "VerifyToken, one token repeated, asked by a service", None),
        figure("distinct", "VerifyToken, every token new, asked by a client", 1.6),
        figure("distinct.service", "VerifyToken, every token new, asked by a service", None),
    ]


async def _verify_samples(bench: Bench) -> tuple[dict[str, list[Sample]], str]:
    """Return the samples, and what the instances held meanwhile."""
    stack, extent, core = bench.stack, bench.extent, bench.stack.cores.measured
    fresh, database = stack.home / "verify.fresh", await stack.new_database()
    write_requests(fresh, [question(token).SerializeToString() for token in await fresh_tokens(bench)])
    async with AsyncExitStack() as running:
        for_client = await running.enter_async_context(stack.token(database, redis=1, core=core))
        for_service = await running.enter_async_context(stack.token(database, redis=1, core=core))
        worker = await running.enter_async_context(stack.worker("bench.load"))
        echo = await running.enter_async_context(echoing(stack, for_client, worker, extent.seconds))
        client = replace(echo, instance=for_client)
        service = replace(echo, instance=for_service, authorization=service_authorization(stack.keys, "rbac"))
        sides: dict[str, Side] = {
            "echo": echo,
            "echo.as-service": await running.enter_async_context(same_echo_as_service(stack, echo)),
            "repeated": client,
            "repeated.service": service,
            "distinct": replace(client, requests=str(fresh), per_slice=extent.fresh_tokens),
            "distinct.service": replace(service, requests=str(fresh), per_slice=extent.fresh_tokens),
        }
        samples = await interleaved(sides, extent.rounds, bench.say)
        return samples, await lease_state(database)


async def batch(bench: Bench) -> list[Figure]:
    """Measure BatchVerifyTokens with a hundred tokens that no server has seen."""
    stack, extent, core = bench.stack, bench.extent, bench.stack.cores.measured
    tokens, requests = await fresh_tokens(bench), stack.home / "batch.fresh"
    write_requests(requests, [_questions(tokens[at : at + BATCH]).SerializeToString() for at in range(0, len(tokens), BATCH)])
    bearer, database = f"Bearer {stack.signer.client_token('tokens.verify')}", await stack.new_database()
    async with AsyncExitStack() as running:
        instance = await running.enter_async_context(stack.token(database, redis=2, core=core))
        load = await running.enter_async_context(stack.worker("bench.load"))
        rsa = await running.enter_async_context(stack.worker("bench.raw", str(stack.key_file), measured=True))
        calls = Load(load, instance, "BatchVerifyTokens", str(requests), "VALID", lambda: bearer, extent.seconds)
        calls = replace(calls, per_slice=extent.fresh_tokens // BATCH, units=BATCH, concurrency=BATCHES_AT_ONCE)
        sides: dict[str, Side] = {"batch": calls, "raw verify": raw(rsa, "verify", extent.seconds / 3)}
        samples = await interleaved(sides, extent.rounds, bench.say)
        notes = (*circumstances(samples["batch"]), await lease_state(database))
    rates, ceiling = ([sample.rate for sample in samples[name]] for name in sides)
    title = f"BatchVerifyTokens, {BATCH} new tokens a call, asked by a client"
    return [
        Figure("ceiling.verify", "RSA-2048 verification by `cryptography` alone", "/CPU s", Spread.of(ceiling)),
        Figure("batch.distinct", title, "tokens/CPU s", Spread.of(rates), beside("raw verification", rates, ceiling), at_least(10_000), notes),
    ]


def _questions(tokens: Sequence[str]) -> token_pb2.BatchVerifyTokensRequest:
    return token_pb2.BatchVerifyTokensRequest(requests=[question(token) for token in tokens])
