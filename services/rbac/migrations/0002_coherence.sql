-- Coherent memory: an outbox of changes, and the instances that may hold memory.

-- Changes that not all instances are known to have heard of. Deleted once they have.
CREATE TABLE change (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    takes_away boolean NOT NULL,
    payload text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row for each running process. `version` orders its own writes.
CREATE TABLE instance (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    mode text NOT NULL CHECK (mode IN ('leased', 'direct')),
    version bigint NOT NULL,
    seen_time timestamptz NOT NULL,
    holds text[] NOT NULL DEFAULT '{}'
);

