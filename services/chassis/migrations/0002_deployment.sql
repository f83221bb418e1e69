-- Names this deployment wherever several share a server: its keys in Redis begin with it.
CREATE TABLE suite.deployment (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid()
);
INSERT INTO suite.deployment DEFAULT VALUES;
GRANT SELECT ON suite.deployment TO watchword_identity, watchword_token, watchword_rbac, watchword_gateway;
