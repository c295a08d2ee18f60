-- Every statement of the spool, by name. Times are Unix seconds.

-- schema --
-- One row per instance accepted, one row per instance and destination, one count per job state.
CREATE TABLE IF NOT EXISTS job (
    id                  INTEGER PRIMARY KEY AUTOINCREMENT,
    name                TEXT NOT NULL UNIQUE,
    state               TEXT NOT NULL,
    size                INTEGER NOT NULL,
    digest              BLOB NOT NULL,
    sop_class_uid       TEXT NOT NULL,
    sop_instance_uid    TEXT NOT NULL,
    transfer_syntax_uid TEXT NOT NULL,
    calling_ae          TEXT NOT NULL,
    called_ae           TEXT NOT NULL,
    received_at         REAL NOT NULL,
    due_at              REAL NOT NULL,
    lease_until         REAL NOT NULL DEFAULT 0,
    worker              TEXT NOT NULL DEFAULT '',
    attempts            INTEGER NOT NULL DEFAULT 0,
    crashes             INTEGER NOT NULL DEFAULT 0,
    coalesced           INTEGER NOT NULL DEFAULT 0,
    reason              TEXT NOT NULL DEFAULT '',
    marked_at           INTEGER,
    key_id              BLOB,
    repeat_of           INTEGER,
    conflicts_with      INTEGER,
    differs_from_repeat INTEGER NOT NULL DEFAULT 0,
    action              TEXT NOT NULL DEFAULT '',
    result_name         TEXT,
    result_size         INTEGER,
    result_digest       BLOB,
    result_syntax_uid   TEXT,
    result_instance_uid TEXT,
    released            INTEGER NOT NULL DEFAULT 0,
    study_instance_uid  TEXT NOT NULL DEFAULT '',
    series_instance_uid TEXT NOT NULL DEFAULT '',
    updated_at          REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS job_by_state ON job (state, due_at);
CREATE INDEX IF NOT EXISTS job_by_uid ON job (sop_instance_uid);
CREATE INDEX IF NOT EXISTS job_open_by_uid ON job (sop_instance_uid)
    WHERE state IN ('received', 'marking', 'marked');
CREATE INDEX IF NOT EXISTS job_by_result_uid ON job (result_instance_uid)
    WHERE result_instance_uid IS NOT NULL;
CREATE TABLE IF NOT EXISTS sent_as (
    uid     TEXT PRIMARY KEY,
    sent_as TEXT NOT NULL,
    at      REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sent_as_another ON sent_as (sent_as) WHERE sent_as <> uid;
CREATE TABLE IF NOT EXISTS delivery (
    id          INTEGER PRIMARY KEY,
    job_id      INTEGER NOT NULL REFERENCES job (id),
    destination TEXT NOT NULL,
    state       TEXT NOT NULL,
    due_at      REAL NOT NULL,
    lease_until REAL NOT NULL DEFAULT 0,
    worker      TEXT NOT NULL DEFAULT '',
    attempts    INTEGER NOT NULL DEFAULT 0,
    crashes     INTEGER NOT NULL DEFAULT 0,
    reason      TEXT NOT NULL DEFAULT '',
    status      INTEGER,
    updated_at  REAL NOT NULL,
    UNIQUE (job_id, destination)
);
CREATE INDEX IF NOT EXISTS delivery_by_state ON delivery (destination, state, due_at, job_id);
CREATE TABLE IF NOT EXISTS tally (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO tally VALUES ('received', 0), ('marking', 0), ('marked', 0), ('delivered', 0),
                                   ('held', 0), ('rejected', 0), ('dropped', 0);
CREATE TRIGGER IF NOT EXISTS job_added AFTER INSERT ON job BEGIN
    UPDATE tally SET jobs = jobs + 1 WHERE state = new.state;
END;
CREATE TRIGGER IF NOT EXISTS job_moved AFTER UPDATE OF state ON job WHEN new.state <> old.state BEGIN
    UPDATE tally SET jobs = jobs - 1 WHERE state = old.state;
    UPDATE tally SET jobs = jobs + 1 WHERE state = new.state;
END;

-- job_columns --
-- What the table of jobs has; nothing in a new journal.
SELECT name FROM pragma_table_info('job');

-- add_result_instance_uid --
-- Version 2 knew of no instance that is sent under another UID than it came with,
ALTER TABLE job ADD COLUMN result_instance_uid TEXT;

-- add_released --
-- nor what an administrator had decided.
ALTER TABLE job ADD COLUMN released INTEGER NOT NULL DEFAULT 0;

-- delivery_columns --
-- What the table of deliveries has; nothing in a new journal.
SELECT name FROM pragma_table_info('delivery');

-- add_crashes --
-- Version 3 let an instance end its forwarder for ever.
ALTER TABLE delivery ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;

-- assign_uid --
-- Whoever says first under which UID an instance is sent is right for ever.
INSERT OR IGNORE INTO sent_as (uid, sent_as, at) VALUES (:uid, :sent_as, :now);

-- uid_sent_as --
-- The UID an instance is sent under: as was said, as it is if it is a new UID of ours already, or
-- as it was sent before anybody said. NULL: nobody knows yet; pending: a mark worker will.
SELECT coalesce((SELECT sent_as FROM sent_as WHERE uid = :uid),
                (SELECT sent_as FROM sent_as WHERE sent_as = :uid AND sent_as <> uid LIMIT 1),
                (SELECT sop_instance_uid FROM job
                  WHERE sop_instance_uid = :uid AND action <> '' LIMIT 1)) AS sent_as,
       EXISTS (SELECT 1 FROM job WHERE sop_instance_uid = :uid
                  AND state IN ('received', 'marking')) AS pending;

-- any_new_uid --
-- Was any instance sent under another UID than it came with?
SELECT 1 FROM sent_as WHERE sent_as <> uid LIMIT 1;

-- tally --
-- How many jobs are in each state.
SELECT state, jobs FROM tally;

-- backlog --
-- Instances that were answered with success and are still on our disk for somebody.
SELECT sum(jobs) FROM tally WHERE state IN ('received', 'marking', 'marked', 'held');

-- same_uid --
-- Earlier jobs under this SOP Instance UID, newest first.
SELECT id, name, state, size, digest, transfer_syntax_uid, marked_at, key_id, result_name FROM job
 WHERE sop_instance_uid = :sop_instance_uid AND state <> 'dropped' ORDER BY id DESC LIMIT 100;

-- first_marking --
-- The job whose marking the same bytes repeat: what somebody has got before what is on its way. The
-- newest: what an administrator released as another version is what the PACS has.
SELECT id, marked_at, key_id,
       EXISTS (SELECT 1 FROM delivery WHERE job_id = job.id AND state = 'delivered') AS sent FROM job
 WHERE sop_instance_uid = :sop_instance_uid AND digest = :digest
   AND transfer_syntax_uid = :transfer_syntax_uid AND (sent OR state NOT IN ('rejected', 'dropped'))
 ORDER BY sent DESC, id DESC LIMIT 1;

-- date_job --
-- It is marked with this time, whoever of those that repeat each other is marked first.
UPDATE job SET marked_at = coalesce(marked_at, CAST(:now AS INTEGER)) WHERE id = :id
RETURNING marked_at;

-- add_job --
-- A new instance; its file already lies in received/ under this name.
INSERT INTO job (name, state, size, digest, sop_class_uid, sop_instance_uid, transfer_syntax_uid,
                 calling_ae, called_ae, received_at, due_at, marked_at, key_id, repeat_of,
                 conflicts_with, action, result_digest, updated_at)
VALUES (:name, :state, :size, :digest, :sop_class_uid, :sop_instance_uid, :transfer_syntax_uid,
        :calling_ae, :called_ae, :now, :now, :marked_at, :key_id, :repeat_of,
        :conflicts_with, :action, :result_digest, :now);

-- coalesce --
-- The same bytes came again while the first are still on their way.
UPDATE job SET coalesced = coalesced + 1, updated_at = :now WHERE id = :id;

-- take_in --
-- The same bytes came again and lie where the first were lost.
UPDATE job SET size = :size, coalesced = coalesced + 1, updated_at = :now WHERE id = :id;

-- mark_anew --
-- To the mark workers again, whatever became of its result: time and key give the same bytes. The
-- digest stays, to be compared with.
UPDATE job SET state = 'received', reason = :reason, due_at = :now, worker = '', lease_until = 0,
               result_name = NULL, result_size = NULL, result_syntax_uid = NULL, updated_at = :now
 WHERE id = :id AND result_name IS :result_name
   AND state IN ('received', 'marking', 'marked', 'held')
RETURNING id;

-- forget_deliveries --
-- Queued again with the new result; who has had it is not asked twice.
DELETE FROM delivery WHERE job_id = :job_id AND state <> 'delivered';

-- resume_job --
-- What held it is over.
UPDATE job SET state = 'marked', reason = '', updated_at = :now WHERE id = :id AND state = 'held';

-- due_job --
-- Is there anything for a mark worker? (asked without a write lock)
SELECT 1 WHERE EXISTS (SELECT 1 FROM job WHERE state = 'received' AND due_at <= :now
                          AND size <= :room - (SELECT coalesce(sum(size), 0) FROM job WHERE state = 'marking'))
            OR EXISTS (SELECT 1 FROM job WHERE state = 'marking' AND lease_until < :now);

-- next_job_due --
-- When the next job becomes due, or a lease ends.
SELECT min(t) FROM (SELECT min(due_at) AS t FROM job WHERE state = 'received'
                       AND size <= :room - (SELECT coalesce(sum(size), 0) FROM job WHERE state = 'marking')
                    UNION ALL SELECT min(lease_until) FROM job WHERE state = 'marking');

-- claim_job --
-- Take the oldest due job for one worker; nobody else can claim it until lease_until.
-- On a full disk only one whose result fits beside those that are being written is taken.
UPDATE job SET state = 'marking', worker = :worker, attempts = attempts + 1,
               lease_until = :lease_until, marked_at = coalesce(marked_at, :marked_at),
               key_id = coalesce(key_id, (SELECT first.key_id FROM job AS first
                                           WHERE first.id = job.repeat_of)),
               updated_at = :now
 WHERE id = (SELECT id FROM job WHERE state = 'received' AND due_at <= :now
                AND size <= :room - (SELECT coalesce(sum(size), 0) FROM job WHERE state = 'marking')
              ORDER BY due_at, id LIMIT 1)
RETURNING *;

-- expired_jobs --
-- Workers that let their lease run out.
SELECT id, worker FROM job WHERE state = 'marking' AND lease_until < :now;

-- marking_workers --
-- Who holds a job now.
SELECT id, worker FROM job WHERE state = 'marking';

-- job_crashed --
-- Its worker ended while marking it: to the back of the queue, and after the limit to quarantine.
UPDATE job SET crashes = crashes + 1, worker = '', lease_until = 0, updated_at = :now,
       state = CASE WHEN crashes + 1 >= :limit THEN 'held' ELSE 'received' END,
       due_at = :now + :delay_s * (crashes + 1),
       reason = CASE WHEN crashes + 1 >= :limit
                     THEN 'marking it ended its worker ' || (crashes + 1) || ' times'
                     ELSE 'its worker ended while marking it' END
 WHERE id = :id AND state = 'marking' AND worker = :worker
RETURNING state, reason;

-- job_drained --
-- The node stopped and could not wait for it: due as before, neither crash nor attempt counts.
UPDATE job SET state = 'received', worker = '', lease_until = 0, attempts = attempts - 1,
               reason = 'the node was stopped while marking it', updated_at = :now
 WHERE id = :id AND state = 'marking' AND worker = :worker RETURNING state;

-- renew_job --
-- A worker still has the job in hand.
UPDATE job SET lease_until = :lease_until
 WHERE id = :id AND state = 'marking' AND worker = :worker AND attempts = :attempts RETURNING id;

-- leave_job --
-- A worker puts a claimed job back, holds or rejects it.
UPDATE job SET state = :state, reason = :reason, due_at = :due_at, attempts = attempts - :refund,
               worker = '', lease_until = 0, updated_at = :now
 WHERE id = :id AND state = 'marking' AND worker = :worker AND attempts = :attempts RETURNING id;

-- finish_job --
-- A worker has the result on disk; deliveries follow in the same transaction. Marked anew after some
-- destination had it, it has to equal what that one has.
UPDATE job SET state = 'marked', action = :action, reason = :reason, key_id = :key_id,
               result_name = :result_name, result_size = :result_size,
               result_digest = :result_digest, result_syntax_uid = :result_syntax_uid,
               result_instance_uid = :result_instance_uid,
               study_instance_uid = :study_instance_uid,
               series_instance_uid = :series_instance_uid,
               differs_from_repeat = coalesce((SELECT first.result_digest <> :result_digest
                                                 FROM job AS first WHERE first.id = job.repeat_of
                                                  AND (first.state <> 'dropped' OR EXISTS (
                                                       SELECT 1 FROM delivery AS d
                                                        WHERE d.job_id = first.id
                                                          AND d.state = 'delivered'))), 0)
                   OR (coalesce(result_digest, :result_digest) <> :result_digest
                       AND EXISTS (SELECT 1 FROM delivery WHERE job_id = :id AND state = 'delivered')),
               worker = '', lease_until = 0, updated_at = :now
 WHERE id = :id AND state = 'marking' AND worker = :worker AND attempts = :attempts
RETURNING differs_from_repeat, coalesce(repeat_of, id) AS first;

-- hold_repeat --
-- A second version of what was delivered: neither the job nor its deliveries go on by themselves.
UPDATE job SET state = 'held', reason = :reason, updated_at = :now WHERE id = :id;

-- add_delivery --
-- One destination must get this job.
INSERT OR IGNORE INTO delivery (job_id, destination, state, due_at, reason, updated_at)
VALUES (:job_id, :destination, :state, :now, :reason, :now);

-- due_delivery --
-- Is there anything for this destination? (asked without a write lock)
SELECT 1 WHERE EXISTS (SELECT 1 FROM delivery WHERE destination = :destination
                          AND state = 'waiting' AND due_at <= :now)
            OR EXISTS (SELECT 1 FROM delivery WHERE destination = :destination
                          AND state = 'sending' AND lease_until < :now);

-- next_delivery_due --
-- When the next delivery to this destination becomes due, or a lease ends.
SELECT min(t) FROM (SELECT min(due_at) AS t FROM delivery
                     WHERE destination = :destination AND state = 'waiting'
                    UNION ALL SELECT min(lease_until) FROM delivery
                     WHERE destination = :destination AND state = 'sending');

-- claim_deliveries --
-- Take the oldest due deliveries of one destination for one forwarder; :fresh, none that was refused
-- three times or more.
UPDATE delivery SET state = 'sending', worker = :worker, attempts = attempts + 1,
                    lease_until = :lease_until, updated_at = :now
 WHERE id IN (SELECT id FROM delivery WHERE destination = :destination AND state = 'waiting'
                 AND due_at <= :now AND (NOT :fresh OR status IS NULL OR attempts < 3)
               ORDER BY due_at, job_id LIMIT :limit)
RETURNING id;

-- overtaken --
-- The nearest earlier version under the same SOP Instance UID that is still on its way here: a PACS
-- keeps whichever comes last. Held ones wait for an administrator, and nobody waits for them.
SELECT earlier.id
  FROM job AS j JOIN job AS earlier INDEXED BY job_open_by_uid
    ON earlier.sop_instance_uid = j.sop_instance_uid AND earlier.id < j.id
   AND earlier.state IN ('received', 'marking', 'marked')
  LEFT JOIN delivery AS d ON d.job_id = earlier.id AND d.destination = :destination
 WHERE j.id = :job_id AND j.sop_instance_uid <> ''
   AND (earlier.state <> 'marked' OR d.state IN ('waiting', 'sending'))
 ORDER BY earlier.id DESC LIMIT 1;

-- let_pass --
-- A delivery just claimed waits for an earlier version; that is no attempt. It looks again after a
-- quarter of its age: the earlier one wakes it (next_version), but for rare ways to end.
UPDATE delivery SET state = 'waiting', worker = '', lease_until = 0, attempts = attempts - 1,
       due_at = :now + min(:longest_s, max(:shortest_s,
                (:now - (SELECT received_at FROM job WHERE job.id = delivery.job_id)) / 4)),
       reason = :reason
 WHERE id = :id;

-- next_version --
-- One version is through or held: the next under its UID need not wait any longer.
UPDATE delivery SET due_at = :now
 WHERE destination = :destination AND state = 'waiting' AND due_at > :now
   AND job_id = (SELECT later.id
                   FROM job AS later INDEXED BY job_open_by_uid
                   JOIN delivery AS d ON d.job_id = later.id AND d.destination = :destination
                                     AND d.state = 'waiting'
                  WHERE later.sop_instance_uid = (SELECT sop_instance_uid FROM job WHERE id = :job_id)
                    AND later.sop_instance_uid <> '' AND later.id > :job_id
                    AND later.state IN ('received', 'marking', 'marked')
                  ORDER BY later.id LIMIT 1);

-- delivery --
-- One delivery with what a forwarder needs of its job.
SELECT d.*, j.name, j.size, j.result_name, j.result_size, j.result_syntax_uid, j.sop_class_uid,
       coalesce(j.result_instance_uid, j.sop_instance_uid) AS sop_instance_uid,
       j.transfer_syntax_uid, j.calling_ae
  FROM delivery AS d JOIN job AS j ON j.id = d.job_id WHERE d.id = :id;

-- deliveries_of --
-- Every delivery of one job.
SELECT d.*, j.name, j.size, j.result_name, j.result_size, j.result_syntax_uid, j.sop_class_uid,
       coalesce(j.result_instance_uid, j.sop_instance_uid) AS sop_instance_uid,
       j.transfer_syntax_uid, j.calling_ae
  FROM delivery AS d JOIN job AS j ON j.id = d.job_id WHERE d.job_id = :job_id ORDER BY d.id;

-- waiting_contexts --
-- Which presentation contexts the next deliveries to this destination need, most urgent first.
SELECT sop_class_uid, syntax FROM (
    SELECT j.sop_class_uid, coalesce(j.result_syntax_uid, j.transfer_syntax_uid) AS syntax,
           row_number() OVER () AS place
      FROM (SELECT job_id FROM delivery WHERE destination = :destination
               AND state IN ('waiting', 'sending') ORDER BY state, due_at LIMIT :limit) AS d
      JOIN job AS j ON j.id = d.job_id)
 GROUP BY sop_class_uid, syntax ORDER BY min(place);

-- expired_deliveries --
-- Forwarders that let their lease run out, or hold one now (limit in the future).
SELECT id, worker FROM delivery WHERE state = 'sending' AND lease_until < :before
   AND destination = :destination;

-- sending_workers --
-- Who holds a delivery now.
SELECT id, worker FROM delivery WHERE state = 'sending';

-- delivery_crashed --
-- Its forwarder ended while sending it: others go first, and after the limit it is held. :blame 0: the
-- forwarder was killed for another reason.
UPDATE delivery SET crashes = crashes + :blame, worker = '', lease_until = 0, updated_at = :now,
       state = CASE WHEN crashes + :blame >= :limit THEN 'held' ELSE 'waiting' END,
       due_at = :now + :delay_s * crashes * :blame,
       reason = CASE WHEN crashes + :blame >= :limit
                     THEN 'sending it ended its forwarder ' || (crashes + 1) || ' times in a row'
                     ELSE 'its forwarder ended while sending it' END
 WHERE id = :id AND state = 'sending' AND worker = :worker
RETURNING job_id, destination, state, reason;

-- renew_delivery --
-- A forwarder still has it in hand.
UPDATE delivery SET lease_until = :lease_until
 WHERE id = :id AND state = 'sending' AND worker = :worker AND attempts = :attempts RETURNING id;

-- leave_delivery --
-- A forwarder is done with it, for now or for good.
UPDATE delivery SET state = :state, reason = :reason, status = :status, due_at = :due_at,
                    attempts = attempts - :refund, crashes = 0, worker = '', lease_until = 0,
                    updated_at = :now
 WHERE id = :id AND state = 'sending' AND worker = :worker AND attempts = :attempts RETURNING job_id;

-- open_deliveries --
-- How many instances each destination has yet to get, held ones as well.
SELECT destination, count(*) FROM delivery WHERE state IN ('waiting', 'sending', 'held')
 GROUP BY destination;

-- hold_unknown --
-- No forwarder will ever claim these. Some at a time: others write in between.
UPDATE delivery SET state = 'held', reason = :reason, updated_at = :now
 WHERE id IN (SELECT id FROM delivery WHERE destination = :destination AND state = 'waiting'
               LIMIT :limit)
RETURNING job_id;

-- held_destinations --
-- Whom a job is held for.
SELECT destination FROM delivery WHERE job_id = :job_id AND state = 'held';

-- forget_held_delivery --
-- Another destination gets it instead.
DELETE FROM delivery WHERE job_id = :job_id AND destination = :destination AND state = 'held';

-- settle_job --
-- A job ends with its last open delivery: held if one is held, else delivered.
UPDATE job SET state = (CASE
           WHEN EXISTS (SELECT 1 FROM delivery WHERE job_id = :id AND state = 'held') THEN 'held'
           WHEN EXISTS (SELECT 1 FROM delivery WHERE job_id = :id AND state = 'delivered')
               THEN 'delivered'
           ELSE 'dropped' END),
       reason = coalesce((SELECT group_concat(destination || ': ' || reason, '; ') FROM delivery
                           WHERE job_id = :id AND state = 'held'), reason),
       updated_at = :now
 WHERE id = :id AND state = 'marked'
   AND NOT EXISTS (SELECT 1 FROM delivery WHERE job_id = :id AND state IN ('waiting', 'sending'))
RETURNING state, name, result_name;

-- job --
-- One job.
SELECT * FROM job WHERE id = :id;

-- jobs --
-- Jobs for an administrator's eyes; NULL means any.
SELECT * FROM job
 WHERE (:state IS NULL OR state = :state)
   AND (:destination IS NULL OR id IN (SELECT job_id FROM delivery WHERE destination = :destination))
   AND (:sop_instance_uid IS NULL OR sop_instance_uid = :sop_instance_uid
        OR result_instance_uid = :sop_instance_uid)
 ORDER BY id LIMIT :limit;

-- open_jobs --
-- Jobs whose files must exist.
SELECT id, state, name, size, result_name FROM job
 WHERE state IN ('received', 'marking', 'marked', 'held', 'rejected');

-- hold_lost --
-- Its file is not there any more.
UPDATE job SET state = 'held', reason = :reason, worker = '', lease_until = 0, updated_at = :now
 WHERE id = :id AND state = :state AND state IN ('received', 'marking', 'marked') RETURNING id;

-- hold_lost_deliveries --
-- Deliveries of a job whose file is not there any more.
UPDATE delivery SET state = 'held', reason = :reason, worker = '', lease_until = 0, updated_at = :now
 WHERE job_id = :job_id AND state IN ('waiting', 'sending');

-- retry_job --
-- Make a waiting job due now.
UPDATE job SET due_at = :now, updated_at = :now WHERE id = :id AND state = 'received' RETURNING id;

-- retry_deliveries --
-- Make the waiting deliveries of a job due now.
UPDATE delivery SET due_at = :now, updated_at = :now WHERE job_id = :job_id AND state = 'waiting'
RETURNING destination;

-- release_deliveries --
-- Held deliveries go back to their queues; NULL means whatever held them.
UPDATE delivery SET state = 'waiting', due_at = :now, reason = '', status = NULL, crashes = 0,
                    updated_at = :now
 WHERE job_id = :job_id AND state = 'held' AND (:reason IS NULL OR reason = :reason)
RETURNING destination;

-- release_job --
-- A held or rejected job comes back: to its deliveries if it has any, else to the mark workers.
UPDATE job SET reason = '', crashes = 0, released = 1, due_at = :now, updated_at = :now,
       state = CASE WHEN EXISTS (SELECT 1 FROM delivery WHERE job_id = :id) THEN 'marked'
                    ELSE 'received' END
 WHERE id = :id AND state IN ('held', 'rejected') RETURNING state;

-- newer_version --
-- The latest version under this UID that a destination has got for which this job is held.
SELECT max(later.id) AS id FROM job AS j
  JOIN job AS later ON later.sop_instance_uid = j.sop_instance_uid AND later.id > j.id
                   AND (later.digest <> j.digest OR later.transfer_syntax_uid <> j.transfer_syntax_uid)
  JOIN delivery AS had ON had.job_id = later.id AND had.state = 'delivered'
  JOIN delivery AS held ON held.job_id = j.id AND held.state = 'held'
                       AND held.destination = had.destination
 WHERE j.id = :id AND j.sop_instance_uid <> '';

-- drop_deliveries --
-- No destination gets it any more.
UPDATE delivery SET state = 'dropped', worker = '', lease_until = 0, updated_at = :now
 WHERE job_id = :job_id AND state IN ('waiting', 'sending', 'held');

-- drop_job --
-- An administrator gives it up.
UPDATE job SET state = 'dropped', reason = :reason, worker = '', lease_until = 0, updated_at = :now
 WHERE id = :id AND state IN ('received', 'marking', 'marked', 'held', 'rejected')
RETURNING name, result_name;
