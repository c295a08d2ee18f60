-- The outbox: what the registrar has yet to be told, and the spool's own name.

-- outbox_schema --
-- A row is written in the transaction of the change it tells of. Its id is never used again
-- (AUTOINCREMENT), so <spool>:<id> names it for good.
CREATE TABLE IF NOT EXISTS outbox (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    at   REAL NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS spool_name (only INTEGER PRIMARY KEY CHECK (only = 1), name TEXT NOT NULL);
INSERT OR IGNORE INTO spool_name VALUES (1, lower(hex(randomblob(8))));

-- spool_name --
-- What this spool is called wherever its rows are known.
SELECT name FROM spool_name;

-- tell --
-- One thing happened.
INSERT INTO outbox (kind, at, body) VALUES (:kind, :at, :body);

-- told_of --
-- The job a row tells of.
SELECT * FROM job WHERE id = :job_id;

-- outbox --
-- What happened, in order; rows of more than :bytes in all are left for the next time, but one.
SELECT id, kind, at, body FROM (
    SELECT *, sum(length(body)) OVER (ORDER BY id) - length(body) AS before
      FROM (SELECT * FROM outbox ORDER BY id LIMIT :limit))
 WHERE before <= :bytes ORDER BY id;

-- outbox_depth --
-- How many rows wait, and since when.
SELECT count(*), min(at) FROM outbox;

-- forget --
-- The registry and the audit trail have these and all before.
DELETE FROM outbox WHERE id <= :id;
