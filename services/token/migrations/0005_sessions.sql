-- session_by_subject_latest begins with the same columns and has the same condition, so it answers whatever this one did.

-- squawk-ignore require-concurrent-index-deletion
DROP INDEX IF EXISTS session_by_subject;
