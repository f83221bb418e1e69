"""Rate limits shared by all instances through Redis: GCRA, one round trip a decision.

The generic cell rate algorithm keeps one number per key, the theoretical arrival time: a burst of COUNT is free, then calls pass at COUNT per
SECONDS. Checks are so many that each instance takes them in lots, one lot at a time, so that nearly all cost no round trip. When Redis does not
answer, each instance keeps its own bucket at a share of the limit: degraded, never open. Source: ITU-T I.371.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

from services.chassis.access import LimitClass
from services.chassis.redis import Redis, RedisDown, Script
from services.chassis.settings import ChassisSettings
from watchword.errors import RateLimited

CHECK_LOT = 1000  # checks taken at once, but never more than a tenth of the limit
RESERVE = 4  # the share of a lot with which left the next is asked for
SHARE = 2  # of how many instances one assumes to be, when Redis does not answer
MAX_KEYS = 50_000  # of the instance's own buckets

GCRA = Script("""
    local interval, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
    local t = redis.call('TIME')
    local now = t[1] * 1000000 + t[2]
    local tat = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
    local next_tat = tat + interval * cost
    local wait = next_tat - now - interval * burst
    if wait > 0 then return math.ceil(wait) end
    redis.call('SET', KEYS[1], string.format('%d', next_tat), 'PX', math.ceil((next_tat - now) / 1000) + 1)
    return 0
""")


@dataclass(frozen=True, slots=True)
class Limit:
    """`count` calls a `seconds`, all of them at once if need be."""

    count: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Read COUNT/SECONDS."""
        count, _, seconds = text.partition("/")
        return cls(int(count), int(seconds))

    @property
    def interval(self) -> float:
        """Microseconds between calls at the sustained rate."""
        return self.seconds * 1_000_000 / self.count


@dataclass(slots=True)
class Lot:
    """Checks that were taken from a budget together: how many are left, and the monotonic second until which they count.

    With `reserve` left, who spends them asks for more: else all calls in flight would find the lot empty at once, and take the long way.
    """

    left: int
    until: float
    reserve: int


class Limits:
    """Takes calls from their budgets."""

    def __init__(self, redis: Redis, limits: Mapping[LimitClass, Limit], *, enabled: bool) -> None:
        self._redis = redis
        self._limits = limits
        self._enabled = enabled
        self._own: OrderedDict[str, float] = OrderedDict()
        self._lots: OrderedDict[tuple[str, str], Lot] = OrderedDict()  # by kind and who
        self._refills: dict[tuple[str, str], asyncio.Task[float]] = {}

    @classmethod
    def of(cls, settings: ChassisSettings, redis: Redis) -> "Limits":
        """Read the limits from the settings."""
        limits = {
            LimitClass.READ: Limit.parse(settings.RATE_LIMIT_READ),
            LimitClass.WRITE: Limit.parse(settings.RATE_LIMIT_WRITE),
            LimitClass.CREDENTIAL: Limit.parse(settings.RATE_LIMIT_CREDENTIAL),
            LimitClass.CHECK: Limit.parse(settings.RATE_LIMIT_CHECK),
        }
        return cls(redis, limits, enabled=settings.AUTH_RATE_LIMIT_ENABLED)

    def spend(self, klass: LimitClass, *budgets: tuple[str, str]) -> bool:
        """Take one call from each of `budgets` (kind, who), if that needs no question to Redis; else from none, and return False."""
        if not self._enabled or klass is LimitClass.NONE:
            return True
        if klass is not LimitClass.CHECK:
            return False
        now, lots = time.monotonic(), self._lots
        drawn = []
        for budget in budgets:
            if budget[1]:
                lot = lots.get(budget)
                if lot is None or lot.left <= 0 or lot.until <= now:
                    return False
                drawn.append((budget, lot))
        for budget, lot in drawn:
            lot.left -= 1
            if lot.left == lot.reserve and budget not in self._refills:
                self._begin_refill(budget, self._limits[klass])
        return True

    async def take(self, klass: LimitClass, kind: str, who: str) -> None:
        """Take one call of `klass` from the budget of `who`. Raises RateLimited."""
        if not self._enabled or klass is LimitClass.NONE or not who:
            return
        limit = self._limits[klass]
        wait = await self._take_lot((kind, who), limit) if klass is LimitClass.CHECK else await self._ask(_key(klass, kind, who), limit, 1)
        if wait > 0:
            raise RateLimited(retry_after=timedelta(microseconds=wait))

    async def _take_lot(self, budget: tuple[str, str], limit: Limit) -> float:
        """Return microseconds to wait, 0 if the call may pass. All who find a lot empty wait for the same new one."""
        while not self._draw(budget):
            refill = self._refills.get(budget) or self._begin_refill(budget, limit)
            wait = await asyncio.shield(refill)  # of several who wait, one that gives up must not end it
            if wait > 0:
                return wait
        return 0

    def _begin_refill(self, budget: tuple[str, str], limit: Limit) -> asyncio.Task[float]:
        refill = self._refills[budget] = asyncio.create_task(self._refill(budget, limit), name="refill")
        refill.add_done_callback(lambda _: self._refills.pop(budget))
        return refill

    def _draw(self, budget: tuple[str, str]) -> bool:
        lot = self._lots.get(budget)
        if lot is None or lot.left <= 0 or lot.until <= time.monotonic():
            return False
        lot.left -= 1
        return True

    async def _refill(self, budget: tuple[str, str], limit: Limit) -> float:
        """Take a new lot; return microseconds to wait if there is none."""
        size = max(1, min(CHECK_LOT, limit.count // 10))
        wait = await self._ask(_key(LimitClass.CHECK, *budget), limit, size)
        if wait <= 0:
            now, old = time.monotonic(), self._lots.get(budget)
            left = old.left if old is not None and old.until > now else 0
            self._lots[budget] = Lot(left + size, now + limit.seconds, size // RESERVE)
            self._lots.move_to_end(budget)
            if len(self._lots) > MAX_KEYS:
                self._lots.popitem(last=False)
        return wait

    async def _ask(self, key: str, limit: Limit, cost: int) -> float:
        """Return microseconds to wait, 0 if the call may pass."""
        try:
            wait = float(await self._redis.run(GCRA, [key], [f"{limit.interval:.3f}", limit.count, cost]))
        except RedisDown:
            return self._ask_own(key, limit, cost)
        if wait <= 0:
            self._charge_own(key, limit, cost)  # or a blip of Redis would hand out the instance's whole share anew
        return wait

    def _ask_own(self, key: str, limit: Limit, cost: int) -> float:
        now = time.monotonic() * 1_000_000
        interval = limit.interval * SHARE
        next_arrival = max(self._own.get(key, now), now) + interval * cost
        wait = next_arrival - now - max(interval * cost, interval * limit.count / SHARE)
        if wait >= 1:  # less than a microsecond is rounding
            return wait
        self._charge_own(key, limit, cost)
        return 0

    def _charge_own(self, key: str, limit: Limit, cost: int) -> None:
        now = time.monotonic() * 1_000_000
        self._own[key] = max(self._own.get(key, now), now) + limit.interval * SHARE * cost
        self._own.move_to_end(key)
        if len(self._own) > MAX_KEYS:
            self._own.popitem(last=False)


@lru_cache(maxsize=4096)
def _key(klass: LimitClass, kind: str, who: str) -> str:
    return f"limit:{klass}:{kind}:{hashlib.sha256(who.encode()).hexdigest()[:32]}"
