"""The local verifier, beside raw RSA verification."""

from contextlib import AsyncExitStack

from bench.figures import Bench, Figure, at_least, beside
from bench.slices import WARM_UP_SECONDS, Sample, Side, Spread, interleaved, raw
from bench.tokens import fresh_tokens
from bench.workers import Worker


async def local(bench: Bench) -> list[Figure]:
    """Measure tokens that the verifier has seen, and tokens that it has not."""
    samples = await _samples(bench)
    seen, new, ceiling = ([sample.rate for sample in samples[name]] for name in ("seen", "new", "raw verify"))
    promise = at_least(0.5, of_ratio=True)
    return [
        Figure("local.seen", "TokenVerifier, one token repeated", "/CPU s", Spread.of(seen), None, at_least(200_000)),
        Figure("local.new", "TokenVerifier, every token new", "/CPU s", Spread.of(new), beside("raw verification", new, ceiling), promise),
    ]


async def _samples(bench: Bench) -> dict[str, list[Sample]]:
    stack, extent = bench.stack, bench.extent
    await fresh_tokens(bench)
    access = stack.signer.client_token("tokens.verify")
    async with AsyncExitStack() as running:
        instance = await running.enter_async_context(stack.token(await stack.new_database(), redis=7))
        verifier = await running.enter_async_context(stack.worker("bench.local", instance.address, access, measured=True))
        rsa = await running.enter_async_context(stack.worker("bench.raw", str(stack.key_file), measured=True))
        sides: dict[str, Side] = {
            "raw verify": raw(rsa, "verify", extent.seconds / 2),
            "seen": _seen(verifier, stack.signer.user_token(), extent.seconds / 2),
            "new": _new(verifier, str(stack.token_file), extent.fresh_tokens),
        }
        return await interleaved(sides, extent.rounds, bench.say)


def _seen(verifier: Worker, token: str, seconds: float) -> Side:
    async def side(number: int) -> Sample:
        return Sample(**await verifier.ask(do="repeated", token=token, seconds=WARM_UP_SECONDS if number < 0 else seconds))

    return side


def _new(verifier: Worker, tokens: str, count: int) -> Side:
    async def side(number: int) -> Sample:
        return Sample(**await verifier.ask(do="new", tokens=tokens, first=(number + 1) * count, count=count))

    return side
