-- Users, their devices and sessions, and the server's own secrets. Tokens are here as digests only.

CREATE TABLE users (
    name       TEXT PRIMARY KEY,
    password   TEXT NOT NULL,          -- argon2id, with its parameters and salt
    created_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE devices (
    id         TEXT PRIMARY KEY,
    user       TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- One login of one device. `used` is the token last used for the first time: it and its own
-- successors are good, any other of the family is a replay.
CREATE TABLE families (
    no         INTEGER PRIMARY KEY,
    user       TEXT NOT NULL,
    device     TEXT NOT NULL UNIQUE,
    used       BLOB,
    created_at REAL NOT NULL
) STRICT;
CREATE INDEX families_user ON families (user);

CREATE TABLE tokens (
    no         INTEGER PRIMARY KEY,
    digest     BLOB NOT NULL UNIQUE,
    family     INTEGER NOT NULL,
    parent     BLOB,
    expires_at REAL NOT NULL
) STRICT;
CREATE INDEX tokens_family ON tokens (family);

CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
