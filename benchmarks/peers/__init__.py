"""Other ways to get a message from one process to another, measured as whimbrel is (`rate_ends.py`).

Each is set up so that an acknowledged message is on the server's disk, as with whimbrel, and else in the
way in which it is fastest. What each leaves to its user, `lacks()` says.
"""
