"""The local store: what a client keeps on disk, always encrypted."""
