"""The engine: everything whimbrel decides, as pure state machines without I/O, clocks or randomness."""
