"""Tokens: how they are verified, the keys that verify them, and how one is made."""
