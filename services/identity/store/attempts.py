"""Counters of attempts in Redis, and an instance's own while Redis does not answer.

A counter is a hash `n` (attempts), `until` (milliseconds of the pause's end). Without Redis each instance allows a share of the limit: degraded,
never open.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from services.chassis.limits import MAX_KEYS, SHARE
from services.chassis.redis import Redis, RedisDown, Script
from services.identity.attempts import Count, Key, Policy

TAKE = Script("""
    local free, pause, longest, window = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
    local t = redis.call('TIME')
    local now = t[1] * 1000 + math.floor(t[2] / 1000)
    local kept = redis.call('HMGET', KEYS[1], 'n', 'until')
    local n, until_ = tonumber(kept[1] or 0), tonumber(kept[2] or 0)
    if until_ > now then return {until_ - now, 0} end
    n = n + 1
    redis.call('HSET', KEYS[1], 'n', n)
    if n == 1 then redis.call('PEXPIRE', KEYS[1], window) end
    if n < free then return {0, 0} end
    local length = math.min(pause * 2 ^ math.min(n - free, 30), longest)
    redis.call('HSET', KEYS[1], 'until', string.format('%d', now + length))
    redis.call('PEXPIRE', KEYS[1], string.format('%d', length + window))
    return {0, length}
""")
GIVE_BACK = Script("""
    local n = tonumber(redis.call('HGET', KEYS[1], 'n') or 0)
    if n <= 1 then return redis.call('DEL', KEYS[1]) end
    redis.call('HSET', KEYS[1], 'n', n - 1)
    if n - 1 < tonumber(ARGV[1]) then redis.call('HDEL', KEYS[1], 'until') end
    return 1
""")


@dataclass(frozen=True, slots=True)
class _Own:
    """An instance's own counter; times on the monotonic clock, in seconds."""

    attempts: int
    until: float
    forget_at: float


class AttemptStore:
    """Takes attempts from counters, and gives them back."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._own: OrderedDict[str, _Own] = OrderedDict()

    async def take(self, key: Key) -> Count:
        """Count one attempt, unless the counter is in a pause.

        The instance counts along: when Redis is lost in the middle of a burst, what was taken before is not forgotten.
        """
        policy, own = key.policy, self._take_own(_name(key), key.policy)
        times = (policy.pause * 1000, policy.longest_pause * 1000, policy.window * 1000)
        try:
            wait, pause = await self._redis.run(TAKE, [_name(key)], [policy.free, *times])
        except RedisDown:
            return own
        if int(wait) > 0:
            self._bar_own(_name(key), int(wait) / 1000)
        return Count(timedelta(milliseconds=int(wait)), timedelta(milliseconds=int(pause)))

    async def give_back(self, key: Key) -> None:
        """Uncount one attempt."""
        own = self._own.get(_name(key))
        if own is not None:
            self._own[_name(key)] = replace(own, attempts=own.attempts - 1, until=0.0 if own.attempts <= key.policy.free // SHARE else own.until)
        try:
            await self._redis.run(GIVE_BACK, [_name(key)], [key.policy.free])
        except RedisDown:
            return

    async def clear(self, keys: Sequence[Key]) -> bool:
        """Forget counters. Return whether Redis has forgotten them too."""
        for key in keys:
            self._own.pop(_name(key), None)
        try:
            for key in keys:
                await self._redis.call("DEL", _name(key))
        except RedisDown:
            return False
        return True

    async def find(self, name: str) -> str:
        """Return what is remembered under a name; nothing while Redis does not answer."""
        try:
            return str(await self._redis.call("GET", _remembered(name)) or "")
        except RedisDown:
            return ""

    async def remember(self, name: str, text: str, lasting: timedelta) -> bool:
        """Remember a word for a while. Return whether Redis took it."""
        try:
            await self._redis.call("SET", _remembered(name), text, "EX", int(lasting.total_seconds()))
        except RedisDown:
            return False
        return True

    def _take_own(self, name: str, policy: Policy) -> Count:
        now = time.monotonic()
        own = self._own.get(name)
        if own is None or own.forget_at < now:
            own = _Own(0, 0.0, now + policy.window)
        if own.until > now:
            return Count(timedelta(seconds=own.until - now), timedelta())
        attempts, free = own.attempts + 1, max(1, policy.free // SHARE)
        length = min(policy.pause * 2 ** min(attempts - free, 30), policy.longest_pause) if attempts >= free else 0
        self._own[name] = _Own(attempts, now + length, max(own.forget_at, now + length + policy.window if length else 0.0))
        self._own.move_to_end(name)
        if len(self._own) > MAX_KEYS:
            self._own.popitem(last=False)
        return Count(timedelta(), timedelta(seconds=length))

    def _bar_own(self, name: str, seconds: float) -> None:
        own = self._own.get(name)
        if own is not None:
            self._own[name] = replace(own, until=max(own.until, time.monotonic() + seconds))


def _name(key: Key) -> str:
    return f"identity:attempts:{key.policy.name}:{key.digest}"


def _remembered(name: str) -> str:
    return f"identity:attempts:remembered:{name}"
