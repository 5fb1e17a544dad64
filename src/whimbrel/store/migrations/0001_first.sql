-- The first schema. A message is one row from the moment it is queued or received, updated in place.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What the app entrusts to the store (refresh tokens): never part of what the engine is given.
CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- High-water marks that must outlive the rows they were taken from.
CREATE TABLE marks (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE consumers (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    title TEXT NOT NULL,
    members TEXT NOT NULL,
    epoch TEXT NOT NULL,
    position INTEGER NOT NULL,
    head INTEGER NOT NULL,
    floor INTEGER NOT NULL,
    stream INTEGER NOT NULL,
    last_n INTEGER NOT NULL,
    "read" INTEGER NOT NULL,
    received_acked INTEGER NOT NULL,
    read_acked INTEGER NOT NULL,
    "left" INTEGER NOT NULL,
    receipts TEXT NOT NULL,
    synced_at REAL
) STRICT;

-- Up to here all own messages of a conversation have their time of reading: no need to look there again.
CREATE TABLE read_marks (
    conversation TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE messages (
    entry INTEGER PRIMARY KEY, -- ids are random: rows are appended, only the index on id is not
    id TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL,
    kind TEXT NOT NULL,
    sender TEXT NOT NULL,
    role TEXT NOT NULL,
    format TEXT NOT NULL,
    body TEXT NOT NULL,
    alg TEXT NOT NULL,
    metadata TEXT,
    reply_to TEXT,
    sent_at REAL NOT NULL,
    own INTEGER NOT NULL,
    key TEXT,
    on_reject TEXT NOT NULL,
    expires_at REAL,
    stream INTEGER NOT NULL,
    n INTEGER NOT NULL,
    state TEXT,
    reason TEXT,
    can_retry INTEGER NOT NULL,
    retry_count INTEGER NOT NULL,
    last_retry_at REAL,
    rounds INTEGER NOT NULL,
    attempts TEXT, -- JSON, NULL for none
    void TEXT,
    seq INTEGER,
    arrival INTEGER,
    delivered_at REAL,
    read_at REAL,
    -- An own message that is not settled: the outbox. Kept here, so that no statement can get it wrong.
    waiting INTEGER GENERATED ALWAYS AS (
        own AND (
            void IS NOT NULL
            OR CASE
                WHEN state IS NULL THEN seq IS NULL
                WHEN state IN ('delivered', 'read', 'cancelled') THEN 0
                WHEN state = 'failed' THEN can_retry OR (on_reject = 'block' AND reason = 'rejected')
                ELSE 1
            END
        )
    ) VIRTUAL,
    -- An own message without a place in the log, settled or not: what a page shows below the log.
    below INTEGER GENERATED ALWAYS AS (own AND arrival IS NULL) VIRTUAL
) STRICT;

-- Every index costs each message; these answer all questions without looking at settled history.
CREATE INDEX log ON messages (conversation, seq) WHERE seq IS NOT NULL;
CREATE INDEX arrivals ON messages (arrival) WHERE arrival IS NOT NULL;
CREATE INDEX outbox ON messages (conversation, stream, n) WHERE waiting OR below;
