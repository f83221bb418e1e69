"""The writer's half of coherence: a change is acknowledged once no instance can answer from before it.

Changes of many calls go to the log together. Then the writer waits until each lease holder has applied them, or has lost its lease. If Redis does
not answer, Postgres may still say that no instance answers from memory, or that another instance passed the change on. Else the change is durable
but not acknowledged: FANOUT_PENDING, and the same request_id asks again.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from services.chassis.coherence import LEASE, REGISTERED_FOR, Coherence, Replica, now
from services.chassis.crashpoint import crashpoint
from services.chassis.ending import end
from services.chassis.lease_log import AT_ONCE, LeaseLog, Standing
from services.chassis.outbox import BATCH, Outbox
from services.chassis.postgres import Posted
from services.chassis.redis import RedisDown
from watchword.errors import FanoutPending, WatchwordError

BUDGET = 1.9  # seconds that a call waits; a lease that nobody renews is over after 1.0
GIVE_UP = 10.0  # seconds after which a change is left to the relays
SHORTEST, LONGEST = 0.0005, 0.02  # seconds between looks
GIFT_BUDGET = 0.25  # seconds that a change waits which takes nothing away
RELAY_AFTER = timedelta(seconds=0.5)  # what still waits after that has lost its writer
RELAY_EVERY = 0.5  # seconds
SWEEP_MARGIN = 60.0  # seconds

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Waiting:
    """Changes that are being passed on. `epoch` and `seq` say where they are in the log, once they are there."""

    posted: Sequence[Posted]
    done: asyncio.Future[None]
    began: float = field(default_factory=now)
    epoch: str = ""
    seq: int = 0


class Fanout:
    """Passes changes on, and says when everybody has them."""

    def __init__(self, lease_log: LeaseLog, outbox: Outbox, replica: Replica, coherence: Coherence, *, lag: timedelta) -> None:
        self._log = lease_log
        self._outbox = outbox
        self._replica = replica
        self._coherence = coherence
        self._settled_after = LEASE + lag.total_seconds()
        self._waiting: list[Waiting] = []
        self._delivered: list[int] = []
        self._work = asyncio.Event()
        self._leftovers = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Fanout"]:
        """Pass changes on while inside."""
        tasks = [asyncio.create_task(job(), name=job.__name__) for job in (self._pass_on, self._strike_off, self._relay)]
        try:
            yield self
        finally:
            await end(tasks)
            with contextlib.suppress(WatchwordError, OSError):
                await self._outbox.delete(self._delivered)

    async def spread(self, posted: Sequence[Posted], *, budget: float = BUDGET) -> None:
        """Return when no instance answers from before `posted`, which are committed. Raises FanoutPending.

        budget  seconds that the call can wait
        """
        if not posted:
            return
        for one in posted:
            self._replica.apply(one.payload)  # here it holds at once
        takes_away = any(one.takes_away for one in posted)
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(budget, BUDGET if takes_away else GIFT_BUDGET)):
                await asyncio.shield(self._enqueue(posted).done)
        except TimeoutError:
            log.warning("fanout_pending", changes=len(posted), takes_away=takes_away)
            if takes_away:
                raise FanoutPending from None
        else:
            log.debug("fanned_out", changes=len(posted), milliseconds=round((time.monotonic() - began) * 1000, 2))

    async def settle(self, *, budget: float = BUDGET) -> None:
        """Return when nothing that is committed waits any more, for an answer that says that nothing is left to do. Raises FanoutPending."""
        ends, is_first = now() + budget, True
        async for batch in self._outbox.batches():
            if is_first and not await self._is_any_leased():
                return  # whatever waits: nobody answers from memory, and who will loads it before
            is_first = False
            delivered = set(self._delivered)  # everybody has them; they are only not struck off yet
            await self.spread([posted for posted in batch if posted.id not in delivered], budget=ends - now())

    def _enqueue(self, posted: Sequence[Posted]) -> Waiting:
        waiting = Waiting(posted, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._work.set()
        return waiting

    async def _pass_on(self) -> None:
        pause = SHORTEST
        while True:
            if not self._waiting:
                await self._work.wait()
                pause = SHORTEST
            self._work.clear()
            try:
                self._judge(await self._push())
                pause = min(pause * 1.5, LONGEST)
            except RedisDown:
                pause = LONGEST
                await self._ask_postgres()
            except Exception:  # a defect must not end the passing on
                log.exception("fanout_failed")
                pause = LONGEST
            self._give_up()
            if self._waiting:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._work.wait(), pause)

    async def _push(self) -> Standing:
        """Put into the log what is not in its present epoch, take away leases that are over, and return how things stand."""
        sightings = self._coherence.sightings
        fresh: list[Waiting] = []
        room = AT_ONCE
        for one in self._waiting:
            if not one.epoch or one.epoch != sightings.epoch:
                room -= len(one.posted)
                if fresh and room < 0:
                    break  # the next time
                fresh.append(one)
        if not fresh:
            standing = await self._log.standing()
        else:
            standing = await self._log.publish([posted.payload for one in fresh for posted in one.posted])
            crashpoint("fanout.after_publish")
            for one in fresh:
                one.epoch, one.seq = standing.epoch, standing.seq
        sightings.see(standing)
        for instance, turn in sightings.overdue():
            standing = await self._log.expel(sightings.epoch, instance, turn)
            sightings.see(standing)
            log.info("lease_expelled", of=instance)
        return standing

    def _judge(self, standing: Standing) -> None:
        """Acknowledge what every lease holder has applied. A young epoch may not know all leases that are still believed."""
        if self._coherence.sightings.epoch != standing.epoch or now() - self._coherence.sightings.epoch_since < self._settled_after:
            return
        floor = min((lease.applied for lease in standing.leases.values()), default=standing.seq)
        finished = [one for one in self._waiting if one.epoch == standing.epoch and one.seq <= floor]
        self._delivered += [posted.id for one in finished for posted in one.posted]
        self._leftovers.set()
        self._acknowledge(finished)

    async def _ask_postgres(self) -> None:
        """Acknowledge by Postgres: if no instance answers from memory, or if another instance has passed the changes on."""
        committed = list(self._waiting)
        try:
            if not await self._is_any_leased():
                self._acknowledge(committed)  # they stay in the outbox: who takes a lease next puts them into the log first
                return
            left = await self._outbox.find_left([posted.id for one in committed for posted in one.posted])
            self._acknowledge([one for one in committed if not any(posted.id in left for posted in one.posted)])
        except WatchwordError:
            return  # neither answers: nothing is acknowledged

    async def _is_any_leased(self) -> bool:
        return await self._outbox.is_any_leased(seen_within=timedelta(seconds=REGISTERED_FOR + SWEEP_MARGIN))

    def _acknowledge(self, finished: Sequence[Waiting]) -> None:
        for one in finished:
            self._waiting.remove(one)
            if not one.done.done():
                one.done.set_result(None)

    def _give_up(self) -> None:
        for one in [one for one in self._waiting if now() - one.began > GIVE_UP]:
            self._waiting.remove(one)
            one.done.cancel()

    async def _strike_off(self) -> None:
        """Delete from the outbox what everybody has, many at a time."""
        while True:
            await self._leftovers.wait()
            await asyncio.sleep(LONGEST)
            self._leftovers.clear()
            ids, self._delivered = self._delivered, []
            crashpoint("fanout.before_delete")
            with contextlib.suppress(WatchwordError):  # the relay finds what is left
                await self._outbox.delete(ids)

    async def _relay(self) -> None:
        """Pass on what lost its writer, and forget instances that died."""
        while True:
            await asyncio.sleep(RELAY_EVERY)
            try:
                after: int | None = 0
                while after is not None:
                    after = await self._relay_after(after)
                if self._waiting:
                    await self._outbox.forget_the_gone()
                await self._outbox.sweep(unseen_for=timedelta(seconds=REGISTERED_FOR + 2 * SWEEP_MARGIN))
            except WatchwordError:
                continue
            except Exception:  # a defect must not end the relaying
                log.exception("relay_failed")

    async def _relay_after(self, after: int) -> int | None:
        """Pass on a batch of what lost its writer; return where the next begins, if there is more and this one went through."""
        batch = await self._outbox.list(older_than=RELAY_AFTER, after=after)
        own = {posted.id for one in self._waiting for posted in one.posted}
        posted = [one for one in batch if one.id not in own]
        if posted:
            log.info("relaying", changes=len(posted))
            crashpoint("relay.before_passing_on")
            for one in posted:
                self._replica.apply(one.payload)
            waiting = self._enqueue(posted)
            if len(batch) == BATCH:
                await asyncio.wait([waiting.done], timeout=RELAY_EVERY)
                if not waiting.done.done() or not waiting.epoch:
                    return None  # it did not go through Redis, and the next would not
        return batch[-1].id if len(batch) == BATCH else None
