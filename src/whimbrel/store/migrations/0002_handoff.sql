-- What other processes handed over to the one that syncs this store: commands, in the order they came. The
-- syncing process takes them in this order, and deletes each in the transaction that does what it says.

CREATE TABLE handoff (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given again: who reads on goes by it
    message TEXT UNIQUE, -- the id of the message to be queued; NULL for what is not about a new one
    conversation TEXT,
    size_bytes INTEGER NOT NULL, -- of the message's body
    command TEXT NOT NULL, -- JSON
    at REAL NOT NULL -- wall clock
) STRICT;
