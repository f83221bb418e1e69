"""How groups are written, and what a change asks about them."""

from uuid import UUID

from services.rbac.model import Group, Subject, SubjectType
from services.rbac.store.bindings import BindingWrites
from services.rbac.store.rows import FIND_GROUP, found, group_of


class GroupWrites(BindingWrites):
    """Groups inside a change, and those who are in them."""

    async def get_group(self, group_id: UUID) -> Group:
        """Return a group. Raises NotFound."""
        return group_of(found(await self._row(FIND_GROUP, group_id)))

    _INSERT_GROUP = """
        INSERT INTO subject_group (tenant_id, id, name, description, version, create_time, update_time)
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING
    """

    async def insert_group(self, group: Group) -> bool:
        """Write a new group; return False if the name is taken."""
        values = (group.id, group.name, group.description, group.version, group.create_time, group.update_time)
        return await self._write(self._INSERT_GROUP, *values, only_gives=True) > 0

    _FIND_GROUP_NAMED = "SELECT id FROM subject_group WHERE tenant_id = $1 AND name = $2"

    async def is_group_named(self, name: str) -> bool:
        """Return whether a group has that name."""
        return await self._row(self._FIND_GROUP_NAMED, name) is not None

    _UPDATE_GROUP = "UPDATE subject_group SET name = $3, description = $4, version = $5, update_time = $6 WHERE tenant_id = $1 AND id = $2"

    async def update_group(self, group: Group) -> None:
        """Write a group's new values, which decide nothing."""
        await self._write(self._UPDATE_GROUP, group.id, group.name, group.description, group.version, group.update_time, only_gives=True)

    _DELETE_MEMBERS = "DELETE FROM group_member WHERE tenant_id = $1 AND group_id = $2"
    _DELETE_GROUP = "DELETE FROM subject_group WHERE tenant_id = $1 AND id = $2"

    async def delete_group(self, group_id: UUID) -> tuple[int, int]:
        """Delete a group, its members, memberships and bindings; return how many bindings and members it had."""
        bindings, _ = await self.delete_holdings(Subject(SubjectType.GROUP, group_id))  # which touches its members too
        members = await self._write(self._DELETE_MEMBERS, group_id)
        await self._write(self._DELETE_GROUP, group_id)
        return bindings, members

    _INSERT_MEMBER = """
        INSERT INTO group_member (tenant_id, group_id, member_type, member_id) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING
    """

    async def insert_member(self, group_id: UUID, member: Subject) -> bool:
        """Put a subject into a group; return False if it is in it."""
        await self.touch(holders=[member])
        return await self._write(self._INSERT_MEMBER, group_id, member.type, member.id) > 0  # what the group is denied, he is denied now

    _DELETE_MEMBER = "DELETE FROM group_member WHERE tenant_id = $1 AND group_id = $2 AND member_type = $3 AND member_id = $4"

    async def delete_member(self, group_id: UUID, member: Subject) -> bool:
        """Take a subject out of a group; return False if it is not in it."""
        await self.touch(holders=[member])
        return await self._write(self._DELETE_MEMBER, group_id, member.type, member.id) > 0
