"""Rows of rbac's tables as what they mean."""

from collections.abc import Iterable
from datetime import timedelta

from services.chassis.postgres import Row
from services.rbac.model import Edge, Effect, Group, Role, RoleBinding, Subject, SubjectType, Terms
from watchword.errors import NotFound

ROLE = """
    SELECT r.id, r.name, r.description, r.permissions, r.system, r.version, r.create_time, r.update_time,
           ARRAY(SELECT p.parent_id FROM role_parent p WHERE p.tenant_id = r.tenant_id AND p.role_id = r.id ORDER BY p.parent_id) AS parent_ids
    FROM role r
"""
BINDING = """
    SELECT id, subject_type, subject_id, role_id, resource, expire_time, effect, condition, acr, max_age, version, create_time, update_time
    FROM role_binding
"""
GROUP = "SELECT id, name, description, version, create_time, update_time FROM subject_group"

FIND_ROLE = f"{ROLE} WHERE r.tenant_id = $1 AND r.id = $2"
FIND_BINDING = f"{BINDING} WHERE tenant_id = $1 AND id = $2"
FIND_GROUP = f"{GROUP} WHERE tenant_id = $1 AND id = $2"
FIND_PARENT = "SELECT parent FROM resource WHERE tenant_id = $1 AND name = $2"


def found(row: Row | None) -> Row:
    """Return a row. Raises NotFound."""
    if row is None:
        raise NotFound
    return row


def role_of(row: Row) -> Role:
    """Return the role of a row of ROLE."""
    return Role(
        id=row["id"],
        name=row["name"],
        description=row["description"],
        permissions=tuple(row["permissions"]),
        parent_ids=tuple(row["parent_ids"]),
        system=row["system"],
        version=row["version"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def binding_of(row: Row) -> RoleBinding:
    """Return the binding of a row of BINDING."""
    max_age = None if row["max_age"] is None else timedelta(seconds=row["max_age"])
    return RoleBinding(
        id=row["id"],
        subject=Subject(SubjectType(row["subject_type"]), row["subject_id"]),
        role_id=row["role_id"],
        resource=row["resource"],
        terms=Terms(row["expire_time"], Effect(row["effect"]), row["condition"], row["acr"], max_age),
        version=row["version"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def group_of(row: Row) -> Group:
    """Return the group of a row of GROUP."""
    return Group(
        id=row["id"],
        name=row["name"],
        description=row["description"],
        version=row["version"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def edges_of(rows: Iterable[Row]) -> list[Edge]:
    """Return edges."""
    return [Edge(row["child"], row["parent"]) for row in rows]


def seconds(age: timedelta | None) -> int | None:
    """Return an age as its column holds it."""
    return None if age is None else int(age.total_seconds())
