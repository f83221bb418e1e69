-- Accounts, one-time codes, OAuth clients, tenants, and the two outboxes: mail, and changes that other contexts must still make.

CREATE TABLE tenant (
    id uuid PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    display_name text NOT NULL,
    create_time timestamptz NOT NULL
);

INSERT INTO tenant (id, name, display_name, create_time)
VALUES ('00000000-0000-7000-8000-000000000001', 'default', 'Default', now());

-- A user name holds no @ and an e-mail address always does: no login means two accounts, whichever column finds it.
-- The keys are the canonical forms, made by names.py alone and compared as bytes.
CREATE TABLE account (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES tenant (id),
    email text NOT NULL,
    email_key text COLLATE "C" NOT NULL CHECK (strpos(email_key, '@') > 0),
    email_verified boolean NOT NULL,
    username text NOT NULL,
    username_key text COLLATE "C" CHECK (strpos(username_key, '@') = 0),
    display_name text NOT NULL,
    state text NOT NULL CHECK (state IN ('active', 'disabled')),
    password_hash text NOT NULL,
    password_one_time boolean NOT NULL,
    revision bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    last_login_time timestamptz,
    locked_until timestamptz,
    UNIQUE (tenant_id, email_key),
    UNIQUE (tenant_id, username_key)
);
CREATE INDEX account_by_tenant ON account (tenant_id, id);

-- User names asked for by registrations whose address had an account already. They stay taken for registrations, because a name that
-- is still free after "a mail is on its way" would say that the address was known.
CREATE TABLE username_hold (
    tenant_id uuid NOT NULL REFERENCES tenant (id),
    username_key text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, username_key)
);

-- One-time codes, kept as digests. One per account and kind: a newer one ends the older.
CREATE TABLE code (
    digest bytea PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('email_verification', 'password_reset')),
    email_key text COLLATE "C" NOT NULL,
    expire_time timestamptz NOT NULL,
    UNIQUE (account_id, kind)
);

CREATE TABLE oauth_client (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES tenant (id),
    display_name text NOT NULL,
    scopes text[] NOT NULL,
    secret_digest bytea NOT NULL,
    old_secret_digest bytea NOT NULL,
    old_secret_expire_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL
);
CREATE INDEX oauth_client_by_tenant ON oauth_client (tenant_id, id);

-- Mail to be sent. Who gets which code is decided when it is sent, so no row holds a code.
CREATE TABLE mail (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES tenant (id),
    kind text NOT NULL,
    recipient bytea NOT NULL,
    attempts int NOT NULL,
    next_attempt_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL
);
CREATE INDEX mail_by_due ON mail (next_attempt_time);

-- What other contexts must do because of a change here: written in the transaction of the change, done once under its own id.
CREATE TABLE task (
    id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('revoke_subject', 'revoke_session', 'revoke_client', 'bind_role')),
    tenant_id uuid NOT NULL,
    target_id uuid NOT NULL,
    spared_session_id uuid,
    is_disabled boolean NOT NULL,
    note text NOT NULL,
    attempts int NOT NULL,
    next_attempt_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    done_time timestamptz,
    consistency_token text NOT NULL
);
CREATE INDEX task_by_due ON task (next_attempt_time) WHERE done_time IS NULL;
CREATE INDEX task_by_target ON task (target_id) WHERE done_time IS NULL;

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
