-- Guests: instances of identity and rbac that remember whom token has proved. Whoever takes something away waits for them as for token's own, so they
-- have rows here. They see and write guests' rows only: none of them can say that an instance of token holds no memory.
ALTER TABLE instance ADD COLUMN guest boolean NOT NULL DEFAULT false;
ALTER TABLE instance ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_of_token ON instance TO watchword_token USING (true) WITH CHECK (true);
CREATE POLICY guests ON instance TO watchword_identity, watchword_rbac USING (guest) WITH CHECK (guest);

GRANT USAGE ON SCHEMA token TO watchword_identity, watchword_rbac;
GRANT SELECT, INSERT, UPDATE, DELETE ON instance TO watchword_identity, watchword_rbac;
GRANT SELECT ON schema_migration TO watchword_identity, watchword_rbac;
