"""The inside of a change of one tenant's policy."""

from services.rbac.store.groups import GroupWrites
from services.rbac.store.importing import ImportWrites
from services.rbac.store.resources import ResourceWrites
from services.rbac.store.roles import RoleWrites


class TenantChange(RoleWrites, GroupWrites, ResourceWrites, ImportWrites):
    """All that a change may ask and write. It sees what it wrote, and nothing that others write meanwhile."""
