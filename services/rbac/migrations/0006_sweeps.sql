-- Bindings that ended long ago are deleted by their end, without a look at all the rest.

-- squawk-ignore require-concurrent-index-creation
CREATE INDEX role_binding_by_expiry ON role_binding (expire_time) WHERE expire_time IS NOT NULL;
