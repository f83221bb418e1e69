-- Keys, sessions with their refresh tokens, revocations.

CREATE TABLE signing_key (
    kid text PRIMARY KEY,
    algorithm text NOT NULL,
    state text NOT NULL CHECK (state IN ('PENDING', 'PUBLISHED', 'ACTIVE', 'RETIRING', 'RETIRED')),
    public_pem text NOT NULL,
    sealed_private bytea NOT NULL,
    create_time timestamptz NOT NULL,
    state_time timestamptz NOT NULL
);
CREATE UNIQUE INDEX signing_key_one_active ON signing_key (state) WHERE state = 'ACTIVE';

CREATE TABLE session (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    subject uuid NOT NULL,
    client_id uuid,
    kind text NOT NULL CHECK (kind IN ('user', 'client')),
    scopes text[] NOT NULL,
    audience text NOT NULL,
    acr text NOT NULL,
    auth_time timestamptz NOT NULL,
    address text NOT NULL,
    user_agent text NOT NULL,
    create_time timestamptz NOT NULL,
    last_used_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    end_time timestamptz,
    end_cause text
);
CREATE INDEX session_by_subject ON session (tenant_id, subject) WHERE end_time IS NULL;
CREATE INDEX session_by_client ON session (tenant_id, client_id) WHERE end_time IS NULL;
CREATE INDEX session_by_expiry ON session (expire_time);

-- Only digests: a dump of this table logs nobody in.
CREATE TABLE refresh_token (
    digest bytea PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES session (id) ON DELETE CASCADE,
    issue_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    used_time timestamptz
);
CREATE INDEX refresh_token_by_session ON refresh_token (session_id);

-- `key` is a jti, a session's, a subject's or a client's id: one index probe each.
CREATE TABLE revocation (
    tenant_id uuid NOT NULL,
    key uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('token', 'session', 'subject', 'client')),
    revision bigint NOT NULL,
    spared_revision bigint NOT NULL,
    spared_session_id uuid,
    is_disabled boolean NOT NULL,
    revoke_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, key, kind)
);
CREATE INDEX revocation_by_expiry ON revocation (expire_time);

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
