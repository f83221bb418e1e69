-- What is over is deleted by its time, without a look at all the rest.

-- squawk-ignore require-concurrent-index-creation
CREATE INDEX task_by_end ON task (done_time) WHERE done_time IS NOT NULL;

-- squawk-ignore require-concurrent-index-creation
CREATE INDEX code_by_expiry ON code (expire_time);
