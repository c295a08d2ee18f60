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
INSERT INTO "delivery" VALUES(1,1,'pacs','delivered',1790000002.0,0.0,'',1,'',0,1790000004.0);
INSERT INTO "delivery" VALUES(2,2,'pacs','waiting',1790000007.0,0.0,'',0,'',NULL,1790000007.0);
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
INSERT INTO "job" VALUES(1,'1a20174cd9e1e66792f-00000001','delivered',6,X'7902FA3300A6DBE14574496DFBB1FBBED16F70AC8D54D34174AC47596CA33938','1.2.840.10008.5.1.4.1.1.2','1.2.826.9.1','1.2.840.10008.1.2.1','CT1','DICOMNODE',1790000000.0,1790000000.0,0.0,'',1,0,0,'',1790000001,X'3F9A000000000001',NULL,NULL,0,'marked','1a20174cd9e1e66792f-00000002',7,X'EF6CBF10A3D698242842A66ACD7438A0A022731BC17B8A6DC6113B6243F54102',NULL,'1.2.826','1.2.826.9',1790000004.0);
INSERT INTO "job" VALUES(2,'1a20174cd9e1e66792f-00000003','marked',6,X'52BC2AF231A6AA0BC851F4EE3BE1919F18FBDD8267877D807C76AA71556B3146','1.2.840.10008.5.1.4.1.1.2','1.2.826.9.2','1.2.840.10008.1.2.1','CT1','DICOMNODE',1790000005.0,1790000005.0,0.0,'',1,0,0,'',1790000006,X'3F9A000000000001',NULL,NULL,0,'marked','1a20174cd9e1e66792f-00000004',7,X'2EEE1AA7ABBA5CEA2C94A15E18E0312F0E9F2DF2F0B3DFD864E03714FC2295F5',NULL,'1.2.826','1.2.826.9',1790000007.0);
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
PRAGMA user_version = 1;
COMMIT;
