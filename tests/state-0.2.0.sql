-- A database as version 0.2.0 left it, with messages and keys in it (sqlite3's .dump).
BEGIN TRANSACTION;
CREATE TABLE idempotency_keys (
	email_domain VARCHAR(255) NOT NULL, 
	"key" VARCHAR(255) NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	at FLOAT NOT NULL, 
	reserved_until FLOAT NOT NULL, 
	answer TEXT, 
	message_id VARCHAR(32), 
	message_at FLOAT, 
	PRIMARY KEY (email_domain, "key")
);
INSERT INTO "idempotency_keys" VALUES('example.com','order-1','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',1795000001.0,1795000031.0,'{"message_id": "00000000000000000000000000000001", "outcome": "sent", "attempts": [{"service": "mailgun", "outcome": "not sent", "code": "provider_error", "reason": "HTTP 500.", "milliseconds": 12}, {"service": "backup", "outcome": "sent", "code": "", "reason": "", "milliseconds": 31}], "service_used": "backup", "service_message_id": "<1@backup>", "recipients": [], "rejected": false, "follows_cut_off": false, "found_no_room": false, "retry_after": null, "replayed": false}','00000000000000000000000000000001',1795000001.0);
INSERT INTO "idempotency_keys" VALUES('example.com','order-4','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1795000004.0,1795000034.0,NULL,'00000000000000000000000000000004',1795000004.0);
CREATE TABLE messages (
	message_id VARCHAR(32) NOT NULL, 
	at FLOAT NOT NULL, 
	email_domain VARCHAR(255) NOT NULL, 
	from_email TEXT NOT NULL, 
	recipients TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	outcome VARCHAR(16) NOT NULL, 
	deadline FLOAT NOT NULL, 
	service_used VARCHAR(64), 
	service_message_id TEXT, 
	possible_duplicate BOOLEAN NOT NULL, 
	attempts TEXT NOT NULL, 
	PRIMARY KEY (message_id)
);
INSERT INTO "messages" VALUES('00000000000000000000000000000001',1795000001.0,'example.com','shop@example.com','
ada1@example.org
bob@example.org
','Your order 1','sent',1795000031.0,'backup','<1@backup>',0,'[{"service": "mailgun", "outcome": "not sent", "code": "provider_error", "reason": "HTTP 500.", "milliseconds": 12}, {"service": "backup", "outcome": "sent", "code": "", "reason": "", "milliseconds": 31}]');
INSERT INTO "messages" VALUES('00000000000000000000000000000002',1795000002.0,'example.com','shop@example.com','
ada2@example.org
bob@example.org
','Your order 2','not sent',1795000032.0,NULL,NULL,0,'[{"service": "mailgun", "outcome": "not sent", "code": "provider_error", "reason": "HTTP 500.", "milliseconds": 12}]');
INSERT INTO "messages" VALUES('00000000000000000000000000000003',1795000003.0,'example.com','shop@example.com','
ada3@example.org
bob@example.org
','Your order 3','unknown',1795000033.0,NULL,NULL,0,'[]');
INSERT INTO "messages" VALUES('00000000000000000000000000000004',1795000004.0,'example.com','shop@example.com','
ada4@example.org
bob@example.org
','Your order 4','in progress',1795000034.0,NULL,NULL,0,'[]');
CREATE TABLE recipients (
	email_domain VARCHAR(255) NOT NULL, 
	address TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	message_id VARCHAR(32) NOT NULL, 
	PRIMARY KEY (email_domain, address, at, message_id)
)
 WITHOUT ROWID

;
INSERT INTO "recipients" VALUES('example.com','ada1@example.org',1795000001.0,'00000000000000000000000000000001');
INSERT INTO "recipients" VALUES('example.com','ada2@example.org',1795000002.0,'00000000000000000000000000000002');
INSERT INTO "recipients" VALUES('example.com','ada3@example.org',1795000003.0,'00000000000000000000000000000003');
INSERT INTO "recipients" VALUES('example.com','ada4@example.org',1795000004.0,'00000000000000000000000000000004');
INSERT INTO "recipients" VALUES('example.com','bob@example.org',1795000001.0,'00000000000000000000000000000001');
INSERT INTO "recipients" VALUES('example.com','bob@example.org',1795000002.0,'00000000000000000000000000000002');
INSERT INTO "recipients" VALUES('example.com','bob@example.org',1795000003.0,'00000000000000000000000000000003');
INSERT INTO "recipients" VALUES('example.com','bob@example.org',1795000004.0,'00000000000000000000000000000004');
CREATE TABLE schema_version (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(1);
INSERT INTO "schema_version" VALUES(2);
INSERT INTO "schema_version" VALUES(3);
INSERT INTO "schema_version" VALUES(4);
INSERT INTO "schema_version" VALUES(5);
INSERT INTO "schema_version" VALUES(6);
INSERT INTO "schema_version" VALUES(7);
INSERT INTO "schema_version" VALUES(8);
CREATE TABLE secrets (
	name VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "secrets" VALUES('sessions','a-secret-of-the-version-before');
CREATE TABLE service_changes (
	id INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	email_domain VARCHAR(255) NOT NULL, 
	service VARCHAR(64) NOT NULL, 
	change TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE services (
	email_domain VARCHAR(255) NOT NULL, 
	service VARCHAR(64) NOT NULL, 
	failures INTEGER NOT NULL, 
	rests INTEGER NOT NULL, 
	rest_until FLOAT, 
	probe_until FLOAT, 
	since FLOAT, 
	reason TEXT NOT NULL, 
	simulated BOOLEAN NOT NULL, 
	rest_seconds FLOAT, 
	drill TEXT, 
	last_errors TEXT NOT NULL, 
	PRIMARY KEY (email_domain, service)
);
CREATE TABLE wrong_keys (
	address VARCHAR(64) NOT NULL, 
	at FLOAT NOT NULL, 
	number INTEGER NOT NULL, 
	PRIMARY KEY (address)
);
CREATE INDEX service_changes_by_domain ON service_changes (email_domain, id);
CREATE INDEX messages_by_time ON messages (at);
CREATE INDEX messages_by_domain ON messages (email_domain, at, message_id);
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (at);
CREATE INDEX wrong_keys_by_time ON wrong_keys (at);
CREATE TRIGGER recipients_at_insert AFTER INSERT ON messages BEGIN 
    INSERT INTO recipients (email_domain, address, at, message_id)
    SELECT NEW.email_domain, value, NEW.at, NEW.message_id FROM json_each('[' || replace(
        json_quote(replace(trim(NEW.recipients, char(10)), char(10), char(127))),
        char(127), '","') || ']') WHERE true
    ON CONFLICT DO NOTHING; END;
CREATE TRIGGER recipients_at_delete AFTER DELETE ON messages BEGIN 
    DELETE FROM recipients
    WHERE email_domain = OLD.email_domain AND at = OLD.at AND message_id = OLD.message_id
    AND address IN (SELECT value FROM json_each('[' || replace(
        json_quote(replace(trim(OLD.recipients, char(10)), char(10), char(127))),
        char(127), '","') || ']')); END;
COMMIT;
