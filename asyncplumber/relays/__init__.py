"""How events get to the other instances."""
