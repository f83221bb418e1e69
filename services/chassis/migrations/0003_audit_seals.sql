-- What makes tampering with the audit log show: a chain of keyed hashes for each tenant, and the queue of events that are not yet in it.

CREATE TABLE suite.audit_seal (
    tenant_id uuid NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    event_id uuid NOT NULL UNIQUE,
    hash bytea NOT NULL CHECK (length(hash) = 32),
    seal_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, sequence)
);
CREATE TABLE suite.audit_unsealed (
    tenant_id uuid NOT NULL,
    event_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, event_id)
);

-- Contexts may not write into the queue: only this does, for every event, in the event's own transaction.
CREATE FUNCTION suite.queue_audit_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = suite
AS $$
BEGIN
    INSERT INTO suite.audit_unsealed (tenant_id, event_id) VALUES (new.tenant_id, new.id);
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION suite.queue_audit_event() FROM public;

-- The trigger first: its lock waits for those who write, and lets nobody write until all that was there before is queued too.
CREATE TRIGGER queue_for_sealing AFTER INSERT ON suite.audit_event FOR EACH ROW EXECUTE FUNCTION suite.queue_audit_event();
INSERT INTO suite.audit_unsealed (tenant_id, event_id) SELECT tenant_id, id FROM suite.audit_event;

GRANT SELECT, INSERT ON suite.audit_seal TO watchword_identity;
GRANT SELECT, DELETE ON suite.audit_unsealed TO watchword_identity;
