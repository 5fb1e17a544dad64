"""How fast whimbrel is, measured with real processes on this machine: `make bench`."""
