"""The one statement that a cold check costs: everything above some subjects and resources, of one state.

Rows of four kinds: the state; each holder with its bindings and groups; each role; what each resource lies directly below. UNION drops what was seen
before, so the recursions end whatever the tables hold. Arrays of one row stand side by side, in one order. OFFSET 0 keeps each step a walk along an
index, whatever the planner makes of parameters that it does not know: it would else read whole tables to find a few rows.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta

from services.chassis.postgres import Row
from services.chassis.tenancy import TenantId
from services.rbac.model import ANYBODY, FOR_EVER, Effect, Subject, SubjectType, Terms
from services.rbac.nodes import Bound, Holder, Revision, RoleFacts, Snapshot, State

Fetch = Callable[..., Awaitable[Sequence[Row]]]

FIND_STATE = """
    SELECT coalesce((SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1), 0) AS revision,
           coalesce((SELECT revision FROM policy WHERE tenant_id = $1), 0) AS policy
"""

_LOAD = """
    WITH RECURSIVE holder AS (
        SELECT type, id FROM unnest($2::smallint[], $3::uuid[]) AS a (type, id)
        UNION
        SELECT 2::smallint, above.group_id FROM holder h CROSS JOIN LATERAL (
            SELECT m.group_id FROM group_member m WHERE m.tenant_id = $1 AND m.member_type = h.type AND m.member_id = h.id OFFSET 0
        ) above
    ), bound AS MATERIALIZED (
        SELECT h.type, h.id AS holder_id, own.* FROM holder h CROSS JOIN LATERAL (
            SELECT b.id, b.role_id, b.resource, b.expire_time, b.effect, b.condition, b.acr, b.max_age FROM role_binding b
            WHERE b.tenant_id = $1 AND b.subject_type = h.type AND b.subject_id = h.id AND (b.expire_time IS NULL OR b.expire_time > now()) OFFSET 0
        ) own
    ), reached AS (
        SELECT DISTINCT role_id FROM bound
        UNION
        SELECT above.parent_id FROM reached r CROSS JOIN LATERAL (
            SELECT p.parent_id FROM role_parent p WHERE p.tenant_id = $1 AND p.role_id = r.role_id OFFSET 0
        ) above
    ), place AS (
        SELECT name COLLATE "C" AS name FROM unnest($4::text[]) AS name
        UNION
        SELECT above.parent FROM place p CROSS JOIN LATERAL (
            SELECT r.parent FROM resource r WHERE r.tenant_id = $1 AND r.name = p.name OFFSET 0
        ) above
    )
    SELECT 'state' AS kind, NULL::smallint AS type, NULL::uuid AS id, NULL::text AS name,
           coalesce((SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1), 0) AS revision,
           coalesce((SELECT revision FROM policy WHERE tenant_id = $1), 0) AS policy,
           NULL::uuid[] AS ids, NULL::uuid[] AS role_ids, NULL::text[] AS texts, NULL::timestamptz[] AS ends, NULL::smallint[] AS effects,
           NULL::text[] AS conditions, NULL::text[] AS acrs, NULL::bigint[] AS max_ages
    UNION ALL
    SELECT 'holder', type, id, NULL, NULL, NULL,
           ARRAY(SELECT m.group_id FROM group_member m WHERE m.tenant_id = $1 AND m.member_type = h.type AND m.member_id = h.id ORDER BY m.group_id),
           NULL, NULL, NULL, NULL, NULL, NULL, NULL
    FROM holder h
    UNION ALL
    SELECT 'bound', type, holder_id, NULL, NULL, NULL, array_agg(id ORDER BY id), array_agg(role_id ORDER BY id), array_agg(resource ORDER BY id),
           array_agg(expire_time ORDER BY id), array_agg(effect ORDER BY id), array_agg(condition ORDER BY id), array_agg(acr ORDER BY id),
           array_agg(max_age ORDER BY id)
    FROM bound GROUP BY type, holder_id
    UNION ALL
    SELECT 'role', NULL, r.id, r.name, NULL, NULL,
           ARRAY(SELECT p.parent_id FROM role_parent p WHERE p.tenant_id = $1 AND p.role_id = r.id ORDER BY p.parent_id),
           NULL, r.permissions, NULL, NULL, NULL, NULL, NULL
    FROM reached a CROSS JOIN LATERAL (SELECT o.id, o.name, o.permissions FROM role o WHERE o.tenant_id = $1 AND o.id = a.role_id OFFSET 0) r
    UNION ALL
    SELECT 'place', NULL, NULL, p.name, NULL, NULL, NULL, NULL,
           ARRAY[coalesce((SELECT r.parent FROM resource r WHERE r.tenant_id = $1 AND r.name = p.name), '')],
           NULL, NULL, NULL, NULL, NULL
    FROM place p
"""


async def load(fetch: Fetch, tenant_id: TenantId, subjects: Iterable[Subject], resources: Sequence[str]) -> Snapshot:
    """Return everything above `subjects`, anybody, and `resources`, of one state. Bindings that have expired are left out."""
    asked = list(dict.fromkeys([*subjects, ANYBODY]))
    rows = await fetch(_LOAD, tenant_id, [subject.type for subject in asked], [subject.id for subject in asked], resources)
    return _snapshot(rows)


def _snapshot(rows: Iterable[Row]) -> Snapshot:
    by_kind: dict[str, list[Row]] = {"state": [], "holder": [], "bound": [], "role": [], "place": []}
    for row in rows:
        by_kind[row["kind"]].append(row)
    state = by_kind["state"][0]
    bound = {(row["type"], row["id"]): _bound(row) for row in by_kind["bound"]}
    return Snapshot(
        State(Revision(state["revision"]), Revision(state["policy"])),
        {_subject(row): Holder(bound.get((row["type"], row["id"]), ()), tuple(row["ids"])) for row in by_kind["holder"]},
        {row["id"]: RoleFacts(row["id"], row["name"], frozenset(row["texts"]), tuple(row["ids"])) for row in by_kind["role"]},
        {row["name"]: row["texts"][0] for row in by_kind["place"]},
    )


def _subject(row: Row) -> Subject:
    return Subject(SubjectType(row["type"]), row["id"])


def _bound(row: Row) -> tuple[Bound, ...]:
    terms = map(_terms, row["ends"], row["effects"], row["conditions"], row["acrs"], row["max_ages"])
    return tuple(map(Bound, row["ids"], row["role_ids"], row["texts"], terms))


def _terms(end: datetime | None, effect: int, condition: str, acr: str, max_age: int | None) -> Terms:
    if end is None and effect == Effect.ALLOW and not condition and not acr and max_age is None:
        return FOR_EVER
    return Terms(end, Effect(effect), condition, acr, None if max_age is None else timedelta(seconds=max_age))
