-- Sessions are listed: a subject's, latest first, and only those that can still be used.

-- squawk-ignore require-concurrent-index-creation
CREATE INDEX session_by_subject_latest ON session (tenant_id, subject, id DESC) WHERE end_time IS NULL;

-- One row for each session: its newest refresh token.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX refresh_token_unused ON refresh_token (session_id, expire_time) WHERE used_time IS NULL;
