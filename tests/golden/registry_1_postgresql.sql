-- The first release's registry on PostgreSQL: its tables as it made them, the rows of registry_1.sql.
CREATE TABLE delivery (
	instance_id BIGINT NOT NULL,
	reference TEXT NOT NULL,
	destination TEXT NOT NULL,
	status INTEGER NOT NULL,
	delivered_at FLOAT(53) NOT NULL,
	PRIMARY KEY (instance_id, reference)
);
CREATE TABLE frame (
	id BIGINT NOT NULL,
	instance_id BIGINT NOT NULL,
	number INTEGER NOT NULL,
	original_digest BYTEA,
	marked_digest BYTEA,
	perceptual_hash BIGINT,
	message BYTEA,
	fingerprint BYTEA,
	PRIMARY KEY (id)
);
CREATE INDEX frame_by_message ON frame (message) WHERE message IS NOT NULL;
CREATE INDEX ix_frame_instance_id ON frame (instance_id);
CREATE TABLE instance (
	id BIGINT NOT NULL,
	sop_instance_uid TEXT NOT NULL,
	series_instance_uid TEXT NOT NULL,
	study_instance_uid TEXT NOT NULL,
	sop_class_uid TEXT NOT NULL,
	transfer_syntax_uid TEXT NOT NULL,
	modality TEXT NOT NULL,
	instance_number BIGINT,
	action TEXT NOT NULL,
	received_digest BYTEA NOT NULL,
	delivered_digest BYTEA NOT NULL,
	key_id BYTEA NOT NULL,
	marked_at BIGINT NOT NULL,
	received_at FLOAT(53) NOT NULL,
	calling_ae TEXT NOT NULL,
	frame_count INTEGER NOT NULL,
	PRIMARY KEY (id),
	UNIQUE (sop_instance_uid, delivered_digest)
);
CREATE INDEX ix_instance_marked_at ON instance (marked_at);
CREATE INDEX ix_instance_series_instance_uid ON instance (series_instance_uid);
CREATE INDEX ix_instance_study_instance_uid ON instance (study_instance_uid);
CREATE TABLE registry_meta (
	key TEXT NOT NULL,
	value TEXT NOT NULL,
	PRIMARY KEY (key)
);
CREATE TABLE verdict (
	id BIGSERIAL NOT NULL,
	sop_instance_uid TEXT NOT NULL,
	series_instance_uid TEXT NOT NULL,
	study_instance_uid TEXT NOT NULL,
	verdict TEXT NOT NULL,
	checked_at FLOAT(53) NOT NULL,
	checked_by TEXT NOT NULL,
	details TEXT NOT NULL,
	PRIMARY KEY (id)
);
CREATE INDEX ix_verdict_checked_at ON verdict (checked_at);
CREATE INDEX ix_verdict_series_instance_uid ON verdict (series_instance_uid);
CREATE INDEX ix_verdict_sop_instance_uid ON verdict (sop_instance_uid);
CREATE INDEX ix_verdict_study_instance_uid ON verdict (study_instance_uid);
INSERT INTO delivery VALUES(1,'8f50b66d0f36b28a:3','pacs',0,1790000100.5);
INSERT INTO frame VALUES(1,1,1,'\xd160df689212f021334b03e6414084ae865ba8365b3df378339f9134d5c118d4','\x041c2735c0efb41b6236a21cdb1c88872ba35b48b0aa28b91b60d4b857d63681',-217663073668590698,'\x43b8b058b9f5fb51c66e12a9','\xa2a71476e47e6bf75aa5e1a6b08c442b7297fd5f0a2c01f0da25e1b60937b184a2a71476e47e6bf75aa5e1a6b08c442b7297fd5f0a2c01f0da25e1b60937b184a2a71476e47e6bf75aa5e1a6b08c442b7297fd5f0a2c01f0da25e1b60937b184a2a71476e47e6bf75aa5e1a6b08c442b7297fd5f0a2c01f0da25e1b60937b184');
INSERT INTO frame VALUES(2,1,2,'\xc46b994657c4bd5f4f9acf3a6d932c6606aea670d6aad113b05876621098979b','\x0e21ef703078a50eb71eac6af1623cec43fb789d6b1ce0192822a186076f6329',-5313217370432485488,'\xa89e6385edd703f0b39c1ee0','\x29ee50fdb855da4865896f4b6cae497648a6f2528052fdcecdf99bd614cf32e229ee50fdb855da4865896f4b6cae497648a6f2528052fdcecdf99bd614cf32e229ee50fdb855da4865896f4b6cae497648a6f2528052fdcecdf99bd614cf32e229ee50fdb855da4865896f4b6cae497648a6f2528052fdcecdf99bd614cf32e2');
INSERT INTO instance VALUES(1,'1.2.826.1.1.1','1.2.826.1.1','1.2.826.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','CT',1,'marked','\xb16e032b055cb9021158a122892b1f64c750d0bf14d1bbf0042324cd3e00197a','\xef0f6d3570a949ae5a5eee0f7b195b964d851e2a37728a2d052550c031f9809f','\x3f9a000000000001',1790000001,1790000001.25,'CT1',2);
INSERT INTO instance VALUES(2,'1.2.826.1.1.2','1.2.826.1.1','1.2.826.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','CT',NULL,'sealed','\x6bb6eb4a8556dc70b30ab2b06441b9b56cb7c6ab2d3404f4cc5aa863e3f1734f','\x35e890ba0d21b3c2d8d1e5c2db9c6c992ca070fb986802c8482bfdd0158d3c30','\x3f9a000000000001',1790000002,1790000002.25,'CT1',0);
INSERT INTO registry_meta VALUES('schema','1');
INSERT INTO registry_meta VALUES('registry','f2207e8117472ded3ecd4861eaf4c485');
INSERT INTO registry_meta VALUES('created','1795320955');
INSERT INTO verdict (sop_instance_uid, series_instance_uid, study_instance_uid, verdict, checked_at, checked_by, details) VALUES('1.2.826.1.1.1','1.2.826.1.1','1.2.826.1','tampered',1790000200.5,'AUDITOR','{"verdict": "tampered"}');
