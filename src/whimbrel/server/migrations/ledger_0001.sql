-- The ledger. An entry's position is (conversation number << 36) + seq, a number's is
-- (stream number << 36) + n: one integer key keeps what is read together close together.

CREATE TABLE meta (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    history TEXT NOT NULL,
    clock   INTEGER NOT NULL,
    renewed INTEGER NOT NULL           -- this history took over from another: older streams are unknown
) STRICT;

CREATE TABLE conversations (
    no             INTEGER PRIMARY KEY,
    id             TEXT NOT NULL UNIQUE,
    title          TEXT NOT NULL,
    epoch          TEXT NOT NULL,
    seq            INTEGER NOT NULL,
    changed        INTEGER NOT NULL,   -- commit of the last change of any kind
    log_changed    INTEGER NOT NULL,   -- commit of the last entry
    members_changed INTEGER NOT NULL,  -- commit of the last joining or leaving
    made_of        BLOB NOT NULL       -- digest of the creation, which a repeated one must match
) STRICT;
CREATE INDEX conversations_changed ON conversations (changed);

CREATE TABLE members (
    user            TEXT NOT NULL,
    conversation    INTEGER NOT NULL,
    floor           INTEGER NOT NULL,  -- the log is visible from floor + 1 on
    left_at         INTEGER,           -- the last entry a past member sees; NULL: a present one
    joined          INTEGER NOT NULL,  -- commit
    left_commit     INTEGER NOT NULL,
    received        INTEGER NOT NULL,
    read            INTEGER NOT NULL,
    receipt_changed INTEGER NOT NULL,  -- commit
    PRIMARY KEY (user, conversation)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_conversation ON members (conversation, user);

CREATE TABLE entries (
    position INTEGER PRIMARY KEY,
    id       TEXT NOT NULL UNIQUE,
    sender   TEXT NOT NULL,
    kind     TEXT NOT NULL,
    body     TEXT NOT NULL,
    format   TEXT NOT NULL,
    alg      TEXT NOT NULL,
    role     TEXT NOT NULL,
    metadata TEXT,                     -- JSON
    reply_to TEXT,
    sent_at  REAL NOT NULL,
    at       REAL NOT NULL,
    digest   BLOB NOT NULL             -- of the content, which a repeated send must match
) STRICT;

-- What outlives everything else: which numbers of which stream are settled, and as what.
CREATE TABLE streams (
    no           INTEGER PRIMARY KEY,
    device       TEXT NOT NULL,
    conversation TEXT NOT NULL,        -- as the device named it: it may be unknown here
    stream       INTEGER NOT NULL,
    last_n       INTEGER NOT NULL,
    UNIQUE (device, conversation, stream)
) STRICT;

CREATE TABLE numbers (
    position INTEGER PRIMARY KEY,
    seq      INTEGER NOT NULL,         -- of the entry; 0: void
    id       TEXT NOT NULL,            -- of the message
    digest   BLOB,                     -- of a refused content
    reason   TEXT,
    code     TEXT,
    text     TEXT
) STRICT;
