-- Bindings that deny, hold on conditions, or need a stronger login; subjects of type 4, everybody who is authenticated; and whom changes touched.

-- Effects are numbered as in the contract: 1 allows, 2 denies. `max_age` is in seconds.
ALTER TABLE role_binding
    ADD COLUMN effect smallint NOT NULL DEFAULT 1,
    ADD COLUMN condition text NOT NULL DEFAULT '',
    ADD COLUMN acr text NOT NULL DEFAULT '',
    ADD COLUMN max_age bigint,
    ADD COLUMN version bigint NOT NULL DEFAULT 1,
    ADD COLUMN update_time timestamptz NOT NULL DEFAULT now();
UPDATE role_binding SET update_time = create_time;

-- squawk-ignore ban-drop-constraint
ALTER TABLE role_binding DROP CONSTRAINT role_binding_subject_type_check;
-- squawk-ignore ban-drop-constraint
ALTER TABLE role_binding DROP CONSTRAINT role_binding_tenant_id_subject_type_subject_id_role_id_reso_key;
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE role_binding ADD CONSTRAINT role_binding_subject_type_check CHECK (subject_type IN (1, 2, 3, 4));
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE role_binding ADD CONSTRAINT role_binding_effect_check CHECK (effect IN (1, 2));

-- The same role may be held twice at one place on different terms. Conditions are longer than what an index takes.
-- squawk-ignore require-concurrent-index-creation
CREATE UNIQUE INDEX role_binding_terms ON role_binding
    (tenant_id, subject_type, subject_id, role_id, resource, expire_time, effect, acr, max_age, md5(condition)) NULLS NOT DISTINCT;

-- Known resources by name, and who holds something there, for lookups.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX role_binding_by_resource ON role_binding (tenant_id, resource, subject_type, subject_id) WHERE resource <> '';

-- Who holds a role in the whole tenant, for lookups.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX role_binding_everywhere ON role_binding (tenant_id, role_id, subject_type, subject_id) WHERE resource = '';

-- Denials are few: who looks for them does not look through all bindings of a role.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX role_binding_denials ON role_binding (tenant_id, role_id) WHERE effect = 2;

-- What lies directly below a resource, by name.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX resource_by_place ON resource (tenant_id, parent, name);
-- squawk-ignore require-concurrent-index-deletion
DROP INDEX resource_by_parent;

ALTER TABLE subject_group
    ADD COLUMN version bigint NOT NULL DEFAULT 1,
    ADD COLUMN update_time timestamptz NOT NULL DEFAULT now();
UPDATE subject_group SET update_time = create_time;

-- Whose permissions each change of a tenant's policy touched: users (1), clients (3), anybody (4), as `type/id`; NULL if there were too many to name.
-- `previous` is the policy's revision before. Kept for a day, for watchers that come back.
CREATE TABLE policy_change (
    tenant_id uuid NOT NULL,
    revision bigint NOT NULL,
    previous bigint NOT NULL,
    subjects text[],
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, revision)
);
CREATE INDEX policy_change_by_time ON policy_change (create_time);

CREATE OR REPLACE FUNCTION ensure_system_roles(tenant uuid) RETURNS void
LANGUAGE sql SET search_path = rbac
AS $$
    INSERT INTO role (tenant_id, id, name, description, permissions, system, version, create_time, update_time)
    SELECT tenant, gen_random_uuid(), name, description, permissions, true, 1, now(), now()
    FROM (VALUES
        ('watchword.admin', 'May do everything.', ARRAY['*.*']),
        ('watchword.auditor', 'Sees who may do what, and what was done.', ARRAY[
            'audit-events.read', 'groups.read', 'oauth-clients.read', 'permissions.explain', 'policies.simulate', 'resources.read',
            'role-bindings.read', 'roles.read', 'users.read']),
        ('watchword.user-manager', 'Manages accounts.', ARRAY['users.*']),
        ('watchword.role-manager', 'Manages roles, groups and bindings.', ARRAY[
            'groups.*', 'permissions.check', 'permissions.explain', 'policies.*', 'role-bindings.*', 'roles.*']),
        ('watchword.service', 'Verifies tokens and checks permissions.', ARRAY['permissions.check', 'tokens.verify'])
    ) AS s (name, description, permissions)
    ON CONFLICT (tenant_id, name) DO UPDATE SET permissions = excluded.permissions, version = role.version + 1, update_time = now()
        WHERE role.system AND role.permissions <> excluded.permissions
$$;
SELECT ensure_system_roles(tenant_id) FROM role WHERE system GROUP BY tenant_id;
