-- Where an instance's process runs: others on the same machine can then tell that it is gone.

ALTER TABLE instance ADD COLUMN place text NOT NULL DEFAULT '';
