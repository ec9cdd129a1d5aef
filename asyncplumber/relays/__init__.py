"""
How events get to the other instances.

`routing.Relay` is the relay: it groups events by instance, waits for answers, and counts.  Below it
a carrier moves batches in one way: `http.HttpCarrier`, or `memory.MemoryCarrier` in tests.
"""
