BEGIN TRANSACTION;
CREATE TABLE delivery (
    id          INTEGER PRIMARY KEY,
    job_id      INTEGER NOT NULL REFERENCES job (id),
    destination TEXT NOT NULL,
    state       TEXT NOT NULL,
    due_at      REAL NOT NULL,
    lease_until REAL NOT NULL DEFAULT 0,
    worker      TEXT NOT NULL DEFAULT '',
    attempts    INTEGER NOT NULL DEFAULT 0,
    reason      TEXT NOT NULL DEFAULT '',
    status      INTEGER,
    updated_at  REAL NOT NULL,
    UNIQUE (job_id, destination)
);
INSERT INTO "delivery" VALUES(1,1,'pacs','delivered',1790000003.0,0.0,'',1,'',0,1790000007.0);
INSERT INTO "delivery" VALUES(2,2,'pacs','waiting',1790000005.0,0.0,'',0,'',NULL,1790000005.0);
CREATE TABLE job (
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
    study_instance_uid  TEXT NOT NULL DEFAULT '',
    series_instance_uid TEXT NOT NULL DEFAULT '',
    updated_at          REAL NOT NULL
);
INSERT INTO "job" VALUES(1,'1a2227306aea3aa10e1-00000001','delivered',9,X'336E5F967C1CBE5D2878A05755819DEA4F743621178D2B09612104094D099094','1.2.840.10008.5.1.4.1.1.2','1.2.3.1','1.2.840.10008.1.2.1','CT1','DICOMNODE',1790000000.0,1790000000.0,0.0,'',1,0,0,'',1790000002,X'6B6B6B6B6B6B6B6B',NULL,NULL,0,'marked','1a2227306aea3aa10e1-00000003',8,X'B446376FC29A622293B337EE5ED2157649348D2CC787307B751CD2D5914ABA7D','1.2.840.10008.1.2.1','1.2','1.2.1',1790000007.0);
INSERT INTO "job" VALUES(2,'1a2227306aea3aa10e1-00000002','marked',9,X'6A672E137128A22DCCA85CEA3FFD57A4B6DADA2BC0BF87DC57B3579CC4059B4A','1.2.840.10008.5.1.4.1.1.2','1.2.3.2','1.2.840.10008.1.2.1','CT1','DICOMNODE',1790000001.0,1790000001.0,0.0,'',1,0,0,'',1790000004,X'6B6B6B6B6B6B6B6B',NULL,NULL,0,'marked','1a2227306aea3aa10e1-00000004',8,X'4A2C93C0CC0175A1C286696D1B8464C37F1DDFB207C33D00E0BBF785A88B466A','1.2.840.10008.1.2.1','1.2','1.2.1',1790000005.0);
CREATE TABLE outbox (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    at   REAL NOT NULL,
    body TEXT NOT NULL
);
INSERT INTO "outbox" VALUES(2,'marked',1790000005.0,'{"format":1,"job":2,"sop_class_uid":"1.2.840.10008.5.1.4.1.1.2","sop_instance_uid":"1.2.3.2","study_instance_uid":"1.2","series_instance_uid":"1.2.1","transfer_syntax_uid":"1.2.840.10008.1.2.1","calling_ae":"CT1","received_at":1790000001.0,"received_digest":"6a672e137128a22dcca85cea3ffd57a4b6dada2bc0bf87dc57b3579cc4059b4a","action":"marked","delivered_digest":"4a2c93c0cc0175a1c286696d1b8464c37f1ddfb207c33d00e0bbf785a88b466a","key_id":"6b6b6b6b6b6b6b6b","marked_at":1790000004,"reason":"","destination":"","status":null,"modality":"","instance_number":null,"frame_count":0,"frames":[]}');
CREATE TABLE spool_name (only INTEGER PRIMARY KEY CHECK (only = 1), name TEXT NOT NULL);
INSERT INTO "spool_name" VALUES(1,'cd78698ec363750b');
CREATE TABLE tally (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "tally" VALUES('delivered',1);
INSERT INTO "tally" VALUES('dropped',0);
INSERT INTO "tally" VALUES('held',0);
INSERT INTO "tally" VALUES('marked',1);
INSERT INTO "tally" VALUES('marking',0);
INSERT INTO "tally" VALUES('received',0);
INSERT INTO "tally" VALUES('rejected',0);
CREATE INDEX job_by_state ON job (state, due_at);
CREATE INDEX job_by_uid ON job (sop_instance_uid);
CREATE INDEX delivery_by_state ON delivery (destination, state, due_at, job_id);
CREATE TRIGGER job_added AFTER INSERT ON job BEGIN
    UPDATE tally SET jobs = jobs + 1 WHERE state = new.state;
END;
CREATE TRIGGER job_moved AFTER UPDATE OF state ON job WHEN new.state <> old.state BEGIN
    UPDATE tally SET jobs = jobs - 1 WHERE state = old.state;
    UPDATE tally SET jobs = jobs + 1 WHERE state = new.state;
END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('job',2);
INSERT INTO "sqlite_sequence" VALUES('outbox',3);
PRAGMA user_version = 2;
COMMIT;
