-- Where an account's owner has logged in lately: keyed digests, latest first. Guesses made elsewhere do not keep the owner out there.
ALTER TABLE account ADD COLUMN familiar_places bytea[] NOT NULL DEFAULT '{}';

-- Whom a tenant was given as its first administrator. Rbac never lets the last one go, so a tenant that ever had one has one.
ALTER TABLE tenant ADD COLUMN first_admin_id uuid;
