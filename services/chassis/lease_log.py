"""The Redis half of coherence: one context's log of changes, and the leases of the instances that follow it.

One hash holds the state: an epoch (a random name), the number of the last change, and each instance's lease. It is one key, so that eviction takes
all or nothing. A stream holds the changes, numbered densely, so that a reader sees what it missed. An epoch belongs to one run of one server, and
there to one history of replication, because a primary that was a replica for a while goes on with the same run and other data. A restart, a failover
(there and back, too), a flush, an eviction and a foreign hand all begin a new one, and whatever belonged to the former counts no more. No clock of
Redis is used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from uuid import uuid4

from services.chassis.redis import Redis, RedisDown, Script

LOG_LENGTH = 10_000  # changes kept; who is further behind loads a snapshot
AT_ONCE = 1_000  # changes read or written by one command: some milliseconds

_OPEN = """
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') .. string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
local function is_ours()
  if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return false end
  local state, all = {}, redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    state[all[i]] = all[i + 1]
    if string.sub(all[i], 1, 6) == 'lease:' and not string.match(all[i + 1], '^%d+:%d+:%d+$') then return false end
  end
  if state.run ~= run or not state.epoch then return false end
  if not string.match(state.seq or '', '^%d+$') or not string.match(state.turn or '', '^%d+$') then return false end
  local log = redis.call('TYPE', KEYS[2]).ok
  if log ~= 'stream' then return log == 'none' end
  local about = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #about, 2 do
    if about[i] == 'last-generated-id' then return about[i + 1] == state.seq .. '-0' end
  end
end
if not is_ours() then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'run', run, 'seq', 0, 'turn', 0)
end
local epoch, seq = redis.call('HGET', KEYS[1], 'epoch'), tonumber(redis.call('HGET', KEYS[1], 'seq'))
local function standing(grant)
  local reply, all = {grant, epoch, seq}, redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 6) == 'lease:' then
      reply[#reply + 1] = string.sub(all[i], 7)
      reply[#reply + 1] = all[i + 1]
    end
  end
  return reply
end
"""
_STANDING = Script(f"{_OPEN} return standing(0)")
# Refused where a lease would be: by a replica, and by a server whose memory is full (but for the one time that it begins an epoch there). A field
# that nobody reads is all that it leaves.
_REHEARSE = Script(f"{_OPEN} redis.call('HSET', KEYS[1], 'rehearsed', 1) return standing(0)")
_PUBLISH = Script(f"""{_OPEN}
for i = 3, #ARGV do
  seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], string.format('%.0f-0', seq), 'change', ARGV[i])
end
return standing(0)
""")
# Who asks for a new lease gets it, and from then on writers wait for it. But its holder may lack changes for which nobody waited: if so, the lease is
# believed only once it is renewed. Who has a lease keeps it while lagging, but must have applied what was there when it was last renewed: so a reader
# that is stuck loses its lease, and writers do not wait for it for ever.
_RENEW = Script(f"""{_OPEN}
local name, applied = 'lease:' .. ARGV[2], tonumber(ARGV[4])
if epoch ~= ARGV[3] then return standing(0) end
local lease = redis.call('HGET', KEYS[1], name)
if lease and applied < tonumber(string.match(lease, ':(%d+)$')) then return standing(0) end
local turn = redis.call('HINCRBY', KEYS[1], 'turn', 1)
redis.call('HSET', KEYS[1], name, string.format('%.0f:%.0f:%.0f', turn, applied, seq))
return standing((lease or applied == seq) and 2 or 1)
""")
_EXPEL = Script(f"""{_OPEN}
local lease = redis.call('HGET', KEYS[1], 'lease:' .. ARGV[3])
if epoch == ARGV[2] and lease and string.match(lease, '^%d+') == ARGV[4] then redis.call('HDEL', KEYS[1], 'lease:' .. ARGV[3]) end
return standing(0)
""")


@dataclass(frozen=True, slots=True)
class Lease:
    """One instance's lease. `turn` is new with each renewal, and never comes again in its epoch."""

    turn: str
    applied: int


class Grant(IntEnum):
    """What becomes of a wish for a lease."""

    REFUSED = 0
    WAITED_FOR = 1  # writers wait for the holder, who may lack changes from before
    BELIEVED = 2


@dataclass(frozen=True, slots=True)
class Standing:
    """What a script saw: the epoch, the number of the last change, and all leases."""

    grant: Grant
    epoch: str
    seq: int
    leases: Mapping[str, Lease] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A change and its number."""

    seq: int
    change: str


class LeaseLog:
    """Every command that coherence gives to Redis. Every method raises RedisDown."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        self._keys = (f"watchword:{{{name}}}:state", f"watchword:{{{name}}}:log")  # braces: one slot of a cluster

    async def standing(self) -> Standing:
        """Return how things stand; begin an epoch if there is none."""
        return await self._run(_STANDING)

    async def rehearse(self) -> Standing:
        """Return how things stand, if a lease could be written."""
        return await self._run(_REHEARSE)

    async def publish(self, changes: Sequence[str]) -> Standing:
        """Append changes. The last one's number is the standing's `seq`."""
        return await self._run(_PUBLISH, LOG_LENGTH, *changes)

    async def renew(self, instance: str, epoch: str, applied: int) -> Standing:
        """Take or renew a lease for an instance that has applied everything up to `applied` of `epoch`; see what it is granted."""
        return await self._run(_RENEW, instance, epoch, applied)

    async def expel(self, epoch: str, instance: str, turn: str) -> Standing:
        """Take away a lease, unless it was renewed since `turn`."""
        return await self._run(_EXPEL, epoch, instance, turn)

    async def read(self, after: int, *, wait: float) -> list[Entry]:
        """Return the changes after number `after`, at most AT_ONCE, waiting up to `wait` seconds for the first."""
        block = max(1, int(wait * 1000))
        reply = await self._redis.call("XREAD", "COUNT", AT_ONCE, "BLOCK", block, "STREAMS", self._keys[1], f"{after}-0", wait=wait)
        try:
            return [Entry(int(number.partition("-")[0]), fields["change"]) for _, entries in _pairs(reply) for number, fields in entries]
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise RedisDown from error  # a foreign hand wrote there

    async def _run(self, script: Script, *args: Any) -> Standing:
        reply = await self._redis.run(script, self._keys, (uuid4().hex, *args))
        try:
            grant, epoch, seq, *flat = reply
            leases = {name: Lease(text.split(":")[0], int(text.split(":")[1])) for name, text in zip(flat[::2], flat[1::2], strict=True)}
            return Standing(Grant(grant), epoch, int(seq), leases)
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise RedisDown from error


def _pairs(reply: Any) -> list[Any]:
    return list(reply.items() if isinstance(reply, dict) else reply or ())
