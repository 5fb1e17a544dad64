"""Public test tools: simulator, fault proxy, conformance suites and the pytest plugin."""
