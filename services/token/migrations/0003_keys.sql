-- Keys that are signed with only when everybody can verify. Rows stay for ever, without their private part: no retired key or kid comes back.
ALTER TABLE signing_key ADD COLUMN held_time timestamptz;
ALTER TABLE signing_key ADD COLUMN revoke_time timestamptz;
ALTER TABLE signing_key ADD COLUMN is_asked boolean NOT NULL DEFAULT false;
