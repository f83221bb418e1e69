-- Roles, groups, resources, bindings. Every key begins with the tenant, so that no row can point into another one.

-- When a tenant's policy last changed, as a revision of suite.tenant_revision. Its row is the lock that all changes of a tenant's policy take first.
CREATE TABLE policy (
    tenant_id uuid PRIMARY KEY,
    revision bigint NOT NULL
);

CREATE TABLE role (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    description text NOT NULL,
    permissions text[] NOT NULL,
    system boolean NOT NULL,
    version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);

CREATE TABLE role_parent (
    tenant_id uuid NOT NULL,
    role_id uuid NOT NULL,
    parent_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, role_id, parent_id),
    FOREIGN KEY (tenant_id, role_id) REFERENCES role (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, parent_id) REFERENCES role (tenant_id, id)
);
CREATE INDEX role_parent_by_parent ON role_parent (tenant_id, parent_id);

CREATE TABLE subject_group (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    description text NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);

-- Subject types are numbered as in the contract: 1 user, 2 group, 3 client.
CREATE TABLE group_member (
    tenant_id uuid NOT NULL,
    group_id uuid NOT NULL,
    member_type smallint NOT NULL CHECK (member_type IN (1, 2, 3)),
    member_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, group_id, member_type, member_id),
    FOREIGN KEY (tenant_id, group_id) REFERENCES subject_group (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX group_member_by_member ON group_member (tenant_id, member_type, member_id);

-- Only resources with a parent are written down.
CREATE TABLE resource (
    tenant_id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    parent text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, name)
);
CREATE INDEX resource_by_parent ON resource (tenant_id, parent);

-- `resource` is empty for the whole tenant. The same role may be held twice with different ends, so that a grant is prolonged without a gap.
CREATE TABLE role_binding (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    subject_type smallint NOT NULL CHECK (subject_type IN (1, 2, 3)),
    subject_id uuid NOT NULL,
    role_id uuid NOT NULL,
    resource text COLLATE "C" NOT NULL,
    expire_time timestamptz,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE NULLS NOT DISTINCT (tenant_id, subject_type, subject_id, role_id, resource, expire_time),
    FOREIGN KEY (tenant_id, role_id) REFERENCES role (tenant_id, id)
);
CREATE INDEX role_binding_by_role ON role_binding (tenant_id, role_id, id);
CREATE INDEX role_binding_by_subject ON role_binding (tenant_id, subject_id, id);

CREATE TABLE request (
    tenant_id uuid NOT NULL,
    caller_id text NOT NULL,
    request_id uuid NOT NULL,
    method text NOT NULL,
    fingerprint bytea NOT NULL,
    result bytea,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, caller_id, request_id)
);
CREATE INDEX request_by_time ON request (create_time);

-- The suite's own roles, of which every tenant has its copy. Their names begin with `watchword.`, which no other role's name may.
-- Managing roles is not placing resources: who could move any resource below one that he holds a role on would hold it there too.
CREATE FUNCTION ensure_system_roles(tenant uuid) RETURNS void
LANGUAGE sql SET search_path = rbac
AS $$
    INSERT INTO role (tenant_id, id, name, description, permissions, system, version, create_time, update_time)
    SELECT tenant, gen_random_uuid(), name, description, permissions, true, 1, now(), now()
    FROM (VALUES
        ('watchword.admin', 'May do everything.', ARRAY['*.*']),
        ('watchword.auditor', 'Sees who may do what, and what was done.', ARRAY[
            'audit-events.read', 'groups.read', 'oauth-clients.read', 'role-bindings.read', 'roles.read', 'users.read']),
        ('watchword.user-manager', 'Manages accounts.', ARRAY['users.*']),
        ('watchword.role-manager', 'Manages roles, groups and bindings.', ARRAY[
            'groups.*', 'permissions.check', 'role-bindings.*', 'roles.*']),
        ('watchword.service', 'Verifies tokens and checks permissions.', ARRAY['permissions.check', 'tokens.verify'])
    ) AS s (name, description, permissions)
    ON CONFLICT (tenant_id, name) DO NOTHING
$$;
REVOKE ALL ON FUNCTION ensure_system_roles(uuid) FROM public;

SELECT ensure_system_roles('00000000-0000-7000-8000-000000000001');
