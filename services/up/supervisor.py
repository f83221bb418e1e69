"""The supervisor: starts what the blueprint says in the order of need, watches it, and stops it in the opposite order.

A process that ends by itself takes the stack down, because a stack that limps unseen helps nobody. One that was stopped by command does not.
"""

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence

from gateway.upstreams import ConfigurationInvalid
from services.embedded import EmbeddedError
from services.up.blueprint import Blueprint, Instance
from services.up.child import Child
from services.up.probes import until_healthy
from services.up.processes import Kind, Process, stop_order

START_LIMIT_SECONDS = 90.0  # a slow, busy machine with a cold disk
DRAIN_LIMIT_SECONDS = 25.0  # the services' own DRAIN_TIMEOUT is 20 s
FAILURE_LIMIT_SECONDS = 3.0  # when the stack is broken, nobody waits for drains

Report = Callable[[str], None]


class Failed(Exception):
    """The stack, or a command about one instance, failed: which process, why, and the last lines of its log."""

    def __init__(self, name: str, reason: str, tail: Sequence[str] = ()) -> None:
        words = ["its last words:", *(f"  | {line}" for line in tail)] if tail else []
        super().__init__("\n".join([f"{name} {reason}", *words]))


class Stack:
    """All processes of one home."""

    def __init__(self, blueprint: Blueprint, report: Report) -> None:
        self._blueprint = blueprint
        self._report = report
        self._healthy = {row.name: asyncio.Event() for row in blueprint.processes}
        self._casualty: asyncio.Future[Failed] = asyncio.get_running_loop().create_future()
        self._watches: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Everything in the stack that runs on, in table order."""
        return tuple(instance for instance in self._blueprint.instances if instance.process.kind is not Kind.JOB)

    async def start(self) -> None:
        """Bring everything up; what needs nothing of each other starts together. Raises Failed."""
        await _all(self._start_row(row) for row in self._blueprint.processes)

    async def casualty(self) -> Failed:
        """Wait until a process ends by itself; return which, and its last words."""
        return await asyncio.shield(self._casualty)

    async def stop(self, limit: float) -> None:
        """End everything, in groups, giving each process `limit` seconds to do it itself."""
        self._is_stopping = True
        children: dict[str, list[Child]] = {row.name: [] for row in self._blueprint.processes}
        for instance in self._blueprint.instances:
            if instance.child is not None:
                children[instance.process.name].append(instance.child)
        for group in stop_order(self._blueprint.processes):
            await asyncio.gather(*(child.stop(limit) for name in group for child in children[name]))

    def kill(self) -> None:
        """End everything at once."""
        self._is_stopping = True
        for instance in self._blueprint.instances:
            if instance.child is not None:
                instance.child.kill()

    async def stop_instance(self, name: str, number: signal.Signals) -> None:
        """Signal one instance; for signals that end it, wait until it has. The stack goes on without it. Raises LookupError, Failed."""
        instance = self._find(name)
        if instance.child is None or not instance.is_running:
            raise Failed(name, "is not running")
        if number in (signal.SIGSTOP, signal.SIGCONT):
            instance.child.send(number)
            return
        instance.may_end = True
        instance.child.send(number)
        try:
            await asyncio.wait_for(instance.child.ended(), DRAIN_LIMIT_SECONDS)
        except TimeoutError:
            raise Failed(name, f"did not end within {DRAIN_LIMIT_SECONDS:.0f} s of {number.name}") from None

    async def start_instance(self, name: str) -> None:
        """Start an instance that was stopped, on its old port; return when it is healthy. Raises LookupError, Failed."""
        instance = self._find(name)
        if instance.is_running:
            raise Failed(name, "is running")
        await self.bring_up(instance)
        instance.may_end = False

    def _find(self, name: str) -> Instance:
        for instance in self.instances:
            if instance.name == name:
                return instance
        raise LookupError(f"{name} is not one of {', '.join(instance.name for instance in self.instances)}")

    async def _start_row(self, row: Process) -> None:
        for need in row.after:
            if need in self._healthy:  # a store that is somewhere else needs no waiting for
                await self._healthy[need].wait()
        began = time.monotonic()
        mine = [instance for instance in self._blueprint.instances if instance.process is row]
        await _all(self.bring_up(instance) for instance in mine)
        self._healthy[row.name].set()
        label = f"{row.name} x{len(mine)}" if row.kind is Kind.SERVICE else row.name
        self._report(f"  {label:<13} {time.monotonic() - began:5.1f} s")

    async def bring_up(self, instance: Instance) -> None:
        """Start one instance and wait until it is healthy or, for a job, done. Raises Failed."""
        try:
            command = await asyncio.to_thread(self._blueprint.command, instance)
            self._blueprint.release(instance)
            child = instance.child = Child(command, instance.log)
            await child.start()
        except (EmbeddedError, ConfigurationInvalid, OSError, ValueError) as error:
            raise Failed(instance.name, f"cannot start: {error}") from error
        if instance.process.kind is Kind.JOB:
            await self._until_done(instance, child)
            return
        await self._until_healthy(instance, child)
        self._watch(instance, child)

    async def _until_done(self, instance: Instance, child: Child) -> None:
        try:
            code = await asyncio.wait_for(child.ended(), START_LIMIT_SECONDS)
        except TimeoutError:
            raise self._failed(instance, child, f"was not done after {START_LIMIT_SECONDS:.0f} s") from None
        if code != 0:
            raise self._failed(instance, child, _how_it_ended(code))

    async def _until_healthy(self, instance: Instance, child: Child) -> None:
        ending = asyncio.create_task(child.ended())
        probing = asyncio.create_task(until_healthy(self._blueprint.probe(instance)))
        try:
            await asyncio.wait({ending, probing}, timeout=START_LIMIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                raise self._failed(instance, child, f"{_how_it_ended(ending.result())} before it was healthy")
            if not probing.done():
                raise self._failed(instance, child, f"was not healthy after {START_LIMIT_SECONDS:.0f} s")
            if error := probing.exception():
                raise self._failed(instance, child, f"cannot be asked for its health: {error}")
        finally:
            ending.cancel()
            probing.cancel()

    def _watch(self, instance: Instance, child: Child) -> None:
        async def watch() -> None:
            code = await child.ended()
            if not instance.may_end and not self._is_stopping and not self._casualty.done():
                self._casualty.set_result(self._failed(instance, child, _how_it_ended(code)))

        task = asyncio.create_task(watch())
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    @staticmethod
    def _failed(instance: Instance, child: Child, reason: str) -> Failed:
        return Failed(instance.name, f"{reason}; its log is {instance.log}", child.tail())


async def _all(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Do all of `works` together; when one fails, cancel the others and raise its Failed."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except* Failed as failures:
        raise failures.exceptions[0] from None


def _how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
