"""Lookups: page for page exactly what single checks say, on policies made by chance; and cursors that survive writes."""

import contextlib
import random
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.struct_pb2 import Struct

from tests.service.rbac.conftest import ANY, CLIENT, GROUP, USER, Rbac, Tenant, ask, subject
from watchword.errors import AlreadyExists, InvalidRequest, PageTokenInvalid
from watchword.rbac.v1 import permission_pb2, rbac_pb2

PERMISSION = "doc.read"


async def resources(tenant: Tenant, who: str, *, size: int = 0, kind: str = "doc", **more: Any) -> dict[str, int]:
    """Return all pages of LookupResources, and see that none repeats a name and the order holds."""
    found: list[tuple[str, int]] = []
    request = permission_pb2.LookupResourcesRequest(
        subject=subject(USER, who), permission=PERMISSION, resource_type=kind, page_size=size, tenant_id=tenant.id, **more
    )
    while True:
        answer = await ask(tenant.instances[2].permissions.LookupResources, request, gateway(tenant))
        found += [(one.resource, one.decision) for one in answer.resources]
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert [name for name, _ in found] == sorted({name for name, _ in found})
    return dict(found)


async def subjects(tenant: Tenant, resource: str, *, size: int = 0) -> dict[tuple[int, str], int]:
    """Return all pages of LookupSubjects."""
    found: list[tuple[tuple[int, str], int]] = []
    request = permission_pb2.LookupSubjectsRequest(permission=PERMISSION, resource=resource, page_size=size, tenant_id=tenant.id)
    while True:
        answer = await ask(tenant.instances[2].permissions.LookupSubjects, request, gateway(tenant))
        found += [((one.subject.type, one.subject.id), one.decision) for one in answer.subjects]
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert [key for key, _ in found] == sorted({key for key, _ in found})
    return dict(found)


def gateway(tenant: Tenant) -> Any:
    """A caller of the tenant with the scope."""
    return (("authorization", f"Bearer client|{tenant.id}|{uuid4()}|permissions.check"),)


async def by_chance(tenant: Tenant, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Make a policy of users, clients, groups, folders and documents; return users, clients and documents."""
    chance = random.Random(seed)
    users, clients = [str(uuid4()) for _ in range(8)], [str(uuid4()) for _ in range(3)]
    groups = [await tenant.group(f"group-{number}") for number in range(3)]
    for number, group in enumerate(groups):
        for user in chance.sample(users, 3):
            await tenant.join(group, user)
        if number:
            await tenant.join(groups[number - 1], group, kind=GROUP)
    base = await tenant.role("base", "doc.read")
    roles = [await tenant.role("child", parents=[base]), await tenant.role("all-docs", "doc.*"), await tenant.role("other", "bill.read")]
    documents = [f"doc/{number:02}" for number in range(14)]
    for document in documents[:10]:
        await tenant.place(document, chance.choice(["folder/a", "folder/b", "folder/c"]))
    await tenant.place("folder/c", "folder/a")
    places = ["folder/a", "folder/b", "folder/c", *documents, ""]
    holders = [*((user, USER) for user in users), *((client, CLIENT) for client in clients), *((group, GROUP) for group in groups)]
    for _ in range(16):
        who, kind = chance.choice(holders)
        denies = chance.random() < 0.25
        condition = "context.ok" if chance.random() < 0.2 else ""
        place = chance.choice(places) if chance.random() < 0.9 else ""
        with contextlib.suppress(AlreadyExists):
            await tenant.bind(who, chance.choice(roles), kind=kind, resource=place, denies=denies, condition=condition)
    return users, clients, documents


@pytest.mark.parametrize("seed", range(6))
async def test_a_lookup_says_what_single_checks_say(tenant: Tenant, seed: int) -> None:
    users, clients, documents = await by_chance(tenant, seed)
    known = [*documents[:10], *sorted(set(await _bound_documents(tenant)) - set(documents[:10]))]

    for user in users:
        expected = {}
        for document in known:
            decision = (await tenant.check(user, PERMISSION, document)).decision
            if decision != permission_pb2.DENY:
                expected[document] = decision
        assert await resources(tenant, user, size=3) == expected
    for document in [*known, ""]:
        whole = {}
        for who, kind in [*((user, USER) for user in users), *((client, CLIENT) for client in clients), (tenant.admin_id, USER)]:
            decision = (await tenant.check(who, PERMISSION, document, kind=kind)).decision
            if decision != permission_pb2.DENY:
                whole[kind, who] = decision
        assert await subjects(tenant, document, size=2) == whole


async def _bound_documents(tenant: Tenant) -> list[str]:
    answer = await ask(tenant.instances[0].bindings.ListRoleBindings, rbac_pb2.ListRoleBindingsRequest(page_size=1000), tenant.admin)
    return [binding.resource for binding in answer.role_bindings if binding.resource.startswith("doc/")]


async def test_a_grant_in_the_whole_tenant_is_said_beside_the_known_resources(tenant: Tenant) -> None:
    user, role = str(uuid4()), await tenant.role("reader", PERMISSION)
    await tenant.bind(user, role)
    await tenant.place("doc/1", "folder/a")
    await tenant.bind(str(uuid4()), role, resource="doc/2")
    await tenant.place("page/1", "doc/3")
    await tenant.bind(user, role, resource="doc/2", denies=True)

    request = permission_pb2.LookupResourcesRequest(subject=subject(USER, user), permission=PERMISSION, resource_type="doc", tenant_id=tenant.id)
    answer = await ask(tenant.instances[0].permissions.LookupResources, request, tenant.admin)

    assert answer.all_resources
    assert [one.resource for one in answer.resources] == ["doc/1", "doc/3"]
    answer = await ask(
        tenant.instances[0].permissions.LookupSubjects,
        permission_pb2.LookupSubjectsRequest(permission=PERMISSION, resource="doc/1", tenant_id=tenant.id),
        tenant.admin,
    )
    assert not answer.all_subjects
    await tenant.bind("", role, kind=ANY)
    request_subjects = permission_pb2.LookupSubjectsRequest(permission=PERMISSION, resource="doc/1", tenant_id=tenant.id)
    assert (await ask(tenant.instances[0].permissions.LookupSubjects, request_subjects, tenant.admin)).all_subjects


async def test_a_cursor_survives_writes(tenant: Tenant) -> None:
    """Whatever comes and goes between two pages: nothing twice, and what stays is not missed."""
    user, role = str(uuid4()), await tenant.role("reader", PERMISSION)
    bindings = {f"doc/{number:02}": await tenant.bind(user, role, resource=f"doc/{number:02}") for number in range(0, 20, 2)}
    request = permission_pb2.LookupResourcesRequest(
        subject=subject(USER, user), permission=PERMISSION, resource_type="doc", page_size=3, tenant_id=tenant.id
    )
    seen: list[str] = []
    while True:
        answer = await ask(tenant.instances[1].permissions.LookupResources, request, tenant.admin)
        seen += [one.resource for one in answer.resources]
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
        last = int(seen[-1].partition("/")[2])
        if seen[-1] in bindings:
            await tenant.unbind(bindings.pop(seen[-1]))  # the cursor's own
        await tenant.bind(user, role, resource=f"doc/{last - 1:02}" if last else "doc/99")  # before the cursor

    assert len(seen) == len(set(seen))
    assert {f"doc/{number:02}" for number in range(0, 20, 2)} <= set(seen)


async def test_a_cursor_is_good_for_its_own_lookup_only(rbac: Rbac, tenant: Tenant) -> None:
    user, role = str(uuid4()), await tenant.role("reader", PERMISSION)
    for number in range(3):
        await tenant.bind(user, role, resource=f"doc/{number}")
    request = permission_pb2.LookupResourcesRequest(
        subject=subject(USER, user), permission=PERMISSION, resource_type="doc", page_size=1, tenant_id=tenant.id
    )
    lookup = tenant.instances[0].permissions.LookupResources
    token = (await ask(lookup, request, tenant.admin)).next_page_token
    context = Struct()
    context.update({"ok": True})

    for change in ({"subject": subject(USER, str(uuid4()))}, {"permission": "doc.write"}, {"resource_type": "bill"}, {"context": context}):
        other = permission_pb2.LookupResourcesRequest()
        other.CopyFrom(request)
        other.page_token = token
        for name, value in change.items():
            other.ClearField(name)  # type: ignore[arg-type]
            other.MergeFrom(permission_pb2.LookupResourcesRequest(**{name: value}))  # type: ignore[arg-type]
        with pytest.raises(PageTokenInvalid):
            await ask(lookup, other, tenant.admin)


async def test_a_lookup_displaces_nothing_of_a_memory_that_is_full(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages are looked through once; what is asked for again and again must not go for them."""
    role, people = await tenant.role("reader", PERMISSION), [str(uuid4()) for _ in range(5)]
    for number, person in enumerate(people):
        await tenant.bind(person, role, resource=f"doc/{number}")
    memory = tenant.instances[2].memory
    with monkeypatch.context() as patched:
        patched.setattr("services.rbac.memory.ROOM", 0.0)
        assert await tenant.may(people[0], PERMISSION, "doc/0", at=2)  # so that something is there
        before = len(memory)
        assert set(await subjects(tenant, "doc/1")) == {(USER, tenant.admin_id), (USER, people[1])}
        assert list(await resources(tenant, people[0])) == ["doc/0"]
        assert len(memory) - before <= 2, "what was named, doc/1 and anybody, and none of those that were looked through"
    before = len(memory)
    assert set(await subjects(tenant, "doc/2")) == {(USER, tenant.admin_id), (USER, people[2])}
    assert len(memory) - before > 2


async def test_only_users_and_clients_are_looked_up(tenant: Tenant) -> None:
    for kind in (GROUP, ANY):
        request = permission_pb2.LookupSubjectsRequest(permission=PERMISSION, subject_type=kind, tenant_id=tenant.id)
        with pytest.raises(InvalidRequest):
            await ask(tenant.instances[0].permissions.LookupSubjects, request, tenant.admin)


async def test_another_tenants_resources_and_subjects_are_not_found(rbac: Rbac, tenant: Tenant) -> None:
    other, user = await rbac.tenant(), str(uuid4())
    await other.bind(user, await other.role("reader", PERMISSION), resource="doc/1")

    assert await resources(tenant, user) == {}
    assert (USER, user) not in await subjects(tenant, "doc/1")
