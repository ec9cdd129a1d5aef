"""
Resequencer, delivery and replay: what an accepted event goes through on its way to the subscribers.
"""
