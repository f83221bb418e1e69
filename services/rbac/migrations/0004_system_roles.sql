-- Rewriting the suite's own roles is a change of policy, of which all instances must hear: else they believe the former permissions for minutes.

-- Makes a tenant's policy one that nobody knows anything of. A relay of any running instance finds the row of `change`, and passes it on.
CREATE FUNCTION tell_of_everything(tenant uuid) RETURNS void
LANGUAGE plpgsql SET search_path = rbac
AS $$
DECLARE
    old bigint;
    new bigint;
BEGIN
    INSERT INTO policy AS p (tenant_id, revision) VALUES (tenant, 0)
    ON CONFLICT (tenant_id) DO UPDATE SET revision = p.revision
    RETURNING revision INTO old;
    new := suite.bump_revision(tenant);
    UPDATE policy SET revision = new WHERE tenant_id = tenant;
    INSERT INTO policy_change (tenant_id, revision, previous, subjects) VALUES (tenant, new, old, NULL);
    INSERT INTO change (takes_away, payload)
    VALUES (true, json_build_object('tenant_id', tenant, 'policy', new, 'previous', old, 'everything', true)::text);
END
$$;
REVOKE ALL ON FUNCTION tell_of_everything(uuid) FROM public;

-- For migrations that have replaced ensure_system_roles: gives all tenants the new permissions, and tells of those that had others.
CREATE FUNCTION rewrite_system_roles() RETURNS void
LANGUAGE plpgsql SET search_path = rbac
AS $$
DECLARE
    tenant uuid;
    old text;
BEGIN
    FOR tenant IN SELECT tenant_id FROM role WHERE system GROUP BY tenant_id LOOP
        SELECT string_agg(id || ' ' || version, ',' ORDER BY id) INTO old FROM role WHERE tenant_id = tenant AND system;
        PERFORM ensure_system_roles(tenant);
        IF old <> (SELECT string_agg(id || ' ' || version, ',' ORDER BY id) FROM role WHERE tenant_id = tenant AND system) THEN
            PERFORM tell_of_everything(tenant);
        END IF;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION rewrite_system_roles() FROM public;

-- The release before rewrote without telling.
SELECT tell_of_everything(tenant_id) FROM role WHERE system AND version > 1 GROUP BY tenant_id;
