"""The server: gateway, sessions, ledger, accounts."""
