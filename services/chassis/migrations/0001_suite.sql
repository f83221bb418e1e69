-- What all contexts share, and may only append to: the audit log and the revision of each tenant.

CREATE TABLE suite.audit_event (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    event_time timestamptz NOT NULL,
    context text NOT NULL,
    type text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('success', 'failure')),
    actor_type text NOT NULL,
    actor_id text NOT NULL,
    target_type text NOT NULL,
    target_id text NOT NULL,
    address text NOT NULL,
    request_id text NOT NULL,
    details jsonb NOT NULL
);
CREATE INDEX audit_event_by_tenant ON suite.audit_event (tenant_id, id DESC);
CREATE INDEX audit_event_by_target ON suite.audit_event (tenant_id, target_id, id DESC);
CREATE INDEX audit_event_by_actor ON suite.audit_event (tenant_id, actor_id, id DESC);

-- Counted by us, not by transaction ids, so that dump and restore keep it true.
CREATE TABLE suite.tenant_revision (
    tenant_id uuid PRIMARY KEY,
    revision bigint NOT NULL
);

CREATE FUNCTION suite.bump_revision(tenant uuid) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = suite
AS $$
    INSERT INTO suite.tenant_revision AS t (tenant_id, revision) VALUES (tenant, 1)
    ON CONFLICT (tenant_id) DO UPDATE SET revision = t.revision + 1
    RETURNING revision
$$;

REVOKE ALL ON FUNCTION suite.bump_revision(uuid) FROM public;
GRANT USAGE ON SCHEMA suite TO watchword_identity, watchword_token, watchword_rbac, watchword_gateway;
GRANT EXECUTE ON FUNCTION suite.bump_revision(uuid) TO watchword_identity, watchword_token, watchword_rbac;
GRANT SELECT ON suite.tenant_revision TO watchword_identity, watchword_token, watchword_rbac;
GRANT INSERT ON suite.audit_event TO watchword_identity, watchword_token, watchword_rbac;
GRANT SELECT ON suite.audit_event TO watchword_identity;
GRANT SELECT ON suite.schema_migration TO watchword_identity, watchword_token, watchword_rbac, watchword_gateway;
