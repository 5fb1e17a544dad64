"""The asyncio client: drives the engine over real links and a real store."""
